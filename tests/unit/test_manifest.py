"""The manifest: a worker reads what the conductor has stored."""

from __future__ import annotations

import json

import pytest
from ensembles import a_manifest

from maestro_celery_plugin.config.resources import ScriptCount, StepNeeds
from maestro_celery_plugin.study.manifest import Manifest


def test_it_comes_back_as_it_was_written(tmp_path):
    needs = StepNeeds(nodes=2, procs=ScriptCount(4, "${N}"), options="-x", more={"bind": "rs"})
    cmd = 'echo "$(A)" \\n ü\n\t$HOME'
    manifest = a_manifest(cmd=cmd, labels=["A", "ü"], table="/x y.csv", retry_delay_s=0.5, needs=needs, launches=True)

    manifest.write(tmp_path / "deep" / "manifest.json")

    assert Manifest.read(tmp_path / "deep" / "manifest.json") == manifest


@pytest.mark.parametrize("block", [(), ("needs",)], ids=["manifest", "needs"])
def test_a_manifest_with_an_unknown_rule_is_refused(tmp_path, block):
    """Given a manifest of a later version with a new rule, then a worker does not run samples without this rule."""
    path = tmp_path / "manifest.json"
    a_manifest().write(path)
    values = json.loads(path.read_text())
    place = values
    for key in block:
        place = place.setdefault(key, {})
    place["stop_at_midnight"] = True
    path.write_text(json.dumps(values))

    with pytest.raises(ValueError, match=r"stop_at_midnight\s+(Unexpected keyword argument|Extra inputs)"):
        Manifest.read(path)


def test_all_of_a_study_come_in_the_order_of_their_numbers(tmp_path):
    for number, place in ((3, "a"), (1, "b/X.1"), (2, "b/X.2")):
        a_manifest(number=number).write(tmp_path / place / "manifest.json")

    assert [manifest.number for manifest in Manifest.read_all(tmp_path)] == [1, 2, 3]
    assert Manifest.read_all(tmp_path / "nothing") == []


def test_the_paths_are_those_of_its_samples():
    paths = a_manifest(samples=26, level_max_dirs=25).paths
    assert (paths.of(0), paths.of(25)) == ("00/00", "01/00")
