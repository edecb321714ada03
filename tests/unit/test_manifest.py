"""The manifest: a worker reads the values that the conductor has stored."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ensembles import a_manifest

from maestro_celery_plugin.config.resources import ScriptCount, StepNeeds
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.manifest_builder import _max_failures


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    needs = StepNeeds(nodes=2, procs=ScriptCount(4, "${N}"), options="-x", more={"bind": "rs"})
    cmd = 'echo "$(A)" \\n ü\n\t$HOME'
    manifest = a_manifest(cmd=cmd, labels=["A", "ü"], table="/x y.csv", retry_delay_s=0.5, needs=needs, launches=True)

    manifest.write(tmp_path / "deep" / "manifest.json")

    assert Manifest.read(tmp_path / "deep" / "manifest.json") == manifest


@pytest.mark.parametrize("block", [(), ("needs",)], ids=["manifest", "needs"])
def test_a_manifest_with_an_unknown_key_is_refused(tmp_path, block):
    """Given a manifest of a later version with a new rule, then a worker refuses it and runs no sample."""
    path = tmp_path / "manifest.json"
    a_manifest().write(path)
    values = json.loads(path.read_text())
    place = values
    for key in block:
        place = place.setdefault(key, {})
    place["stop_at_midnight"] = True
    path.write_text(json.dumps(values))

    where = "".join(f"{key}: " for key in block)
    with pytest.raises(StudyError, match=rf"manifest\.json' .* use that version, .*\({where}Object contains unknown field `stop_at_midnight`\)"):
        Manifest.read(path)


def test_a_manifest_does_not_depend_on_the_locale(tmp_path):
    """Given a conductor and a worker with different locales, then the worker reads the same script."""
    path = tmp_path / "manifest.json"
    program = (
        "import sys; from pathlib import Path; from ensembles import a_manifest; path = Path(sys.argv[1]); "
        "a_manifest(cmd=chr(233)).write(path)"
    )
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", program, str(path)], env=environ, cwd=tmp_path, check=True)

    assert path.read_bytes().isascii()
    assert Manifest.read(path).cmd == "\u00e9"


def test_an_infinite_delay_is_stored(tmp_path):
    """JSON of msgspec has null for it, which the worker would refuse."""
    path = tmp_path / "manifest.json"
    a_manifest(retry_delay_s=math.inf).write(path)
    assert Manifest.read(path).retry_delay_s == math.inf


def test_the_manifests_of_a_study_are_sorted_by_number(tmp_path):
    for number, place in ((3, "a"), (1, "b/X.1"), (2, "b/X.2")):
        a_manifest(number=number).write(tmp_path / place / "manifest.json")

    assert [manifest.number for manifest in Manifest.read_all(tmp_path)] == [1, 2, 3]
    assert Manifest.read_all(tmp_path / "nothing") == []


def test_a_manifest_gives_the_paths_of_its_samples():
    paths = a_manifest(samples=26, level_max_dirs=25).paths
    assert (paths.of(0), paths.of(25)) == ("00/00", "01/00")


@pytest.mark.parametrize(
    ("limit", "samples", "expected"),
    [(None, 30, None), (0, 30, 0), (7, 30, 7), ("5%", 30, 1), ("0%", 30, 0), ("100%", 30, 30), ("2.5%", 1000, 25), ("29%", 100, 29)],
)
def test_a_percentage_of_samples_is_a_number_in_the_manifest(limit, samples, expected):
    assert _max_failures(limit, samples) == expected
