"""Sample paths: the same directories as in Merlin 1.13 for the same numbers.

Merlin printed the expected values: `create_hierarchy(N, 1, uniform_directories(N, 1, L), n_digits=len(str(L)))`, and
`get_path_to_sample(i)` of the hierarchy.
"""

import pytest

from maestro_celery_plugin.samples.paths import SamplePaths

# (number of samples, level_max_dirs, paths of the first, the middle N // 2 and the last sample, glob)
MERLIN = [
    (1, 25, (".", ".", "."), ""),
    (3, 25, ("00", "01", "02"), "*/"),
    (25, 25, ("00", "12", "24"), "*/"),
    (26, 25, ("00/00", "00/13", "01/00"), "*/*/"),
    (626, 25, ("00/00/00", "00/12/13", "01/00/00"), "*/*/*/"),
    (1000, 25, ("00/00/00", "00/20/00", "01/14/24"), "*/*/*/"),
    (7, 2, ("0/0/0", "0/1/1", "1/1/0"), "*/*/*/"),
    (10, 10, ("00", "05", "09"), "*/"),
    (10, 3, ("0/0/0", "0/1/2", "1/0/0"), "*/*/*/"),
    (100, 9, ("0/0/0", "0/5/5", "1/2/0"), "*/*/*/"),
    (101, 10, ("00/00/00", "00/05/00", "01/00/00"), "*/*/*/"),
    (5, 1000, ("0000", "0002", "0004"), "*/"),
]


@pytest.mark.parametrize(("count", "level_max_dirs", "paths", "glob"), MERLIN)
def test_paths_are_the_same_as_in_merlin(count, level_max_dirs, paths, glob):
    hierarchy = SamplePaths(count, level_max_dirs)
    assert tuple(hierarchy.of(index) for index in (0, count // 2, count - 1)) == paths
    assert hierarchy.glob == glob


@pytest.mark.parametrize(("count", "level_max_dirs"), [(1, 25), (7, 2), (26, 25), (1000, 9)])
def test_every_sample_has_its_own_path_and_all_yields_the_paths_in_order(count, level_max_dirs):
    hierarchy = SamplePaths(count, level_max_dirs)
    paths = [hierarchy.of(index) for index in range(count)]
    assert len(set(paths)) == count
    assert list(hierarchy.all()) == paths


def test_no_directory_has_more_than_level_max_dirs_entries():
    children = {}
    for path in SamplePaths(1000, 9).all():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            children.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    assert max(map(len, children.values())) == 9
