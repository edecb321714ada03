"""The same specifications with Merlin and with the plugin: directories, scripts, outputs, and what exit codes do."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from merlin_runs import VERSIONS, files_of
from support import BIN, ROOT, Study, kill

SPECIFICATIONS = ROOT / "tests" / "fixtures" / "merlin"
NAMES = ("values", "exits", "differs")

# The differences that are kept on purpose: the row of the table in `docs/merlin.md`, and the steps of `differs.yaml` that show it.
KEPT = {
    "A failed step": {"after"},
    "Failed samples": {"collect"},
    "Exit code 102": {"after_hard"},
    "Quotes in a csv file": {"quoted"},
    "`$(OUTPUT_PATH)`": {"parent"},
}

# The first test waits for two installations and six studies.
pytestmark = pytest.mark.timeout(1800)


@dataclasses.dataclass(frozen=True)
class Left:
    """What the studies left: for each version of Merlin and for the plugin, the files of each study."""

    of_merlin: dict[str, dict[str, dict[str, str]]]
    here: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def left(tmp_path_factory, merlins) -> Left:
    """Run all studies with all versions of Merlin and with the plugin, at the same time."""
    directory = tmp_path_factory.mktemp("here")
    paths = [SPECIFICATIONS / f"{name}.yaml" for name in NAMES]
    with ThreadPoolExecutor() as pool:
        ours = pool.submit(_run_here, directory, [*paths, _converted(SPECIFICATIONS / "differs.yaml", directory)])
        theirs = {version: pool.submit(merlin.run, paths, "last") for version, merlin in merlins.items()}
        return Left(
            {
                version: {name: files_of(workspace) for name, workspace in run.result().items()}
                for version, run in theirs.items()
            },
            {name: files_of(workspace) for name, workspace in ours.result().items()},
        )


def _converted(path: Path, directory: Path) -> Path:
    """Return the specification that `maestro-celery convert` writes."""
    target = directory / "converted.yaml"
    subprocess.run([BIN / "maestro-celery", "convert", path, "-o", target], capture_output=True, check=False)
    return target


def _run_here(directory: Path, paths: list[Path]) -> dict[str, Path]:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(directory)}
    workspaces = {}
    for path in paths:
        study = Study(directory / path.stem, environment)
        try:
            answer = study.command("maestro", "run", "-y", "-fg", "-s", "1", "-o", str(study.path), str(path))
            assert answer.returncode in {0, 1, 2}, answer.stdout + answer.stderr
        finally:
            kill(*study.server(), *study.processes())
        workspaces[path.stem] = study.path
    return workspaces


def differences(theirs: dict[str, str], here: dict[str, str]) -> set[str]:
    """Return the paths that differ, except scripts that did not run.

    The plugin keeps a template of the script above the directories of the samples. Merlin writes the script of a
    restart for each sample, the plugin for the samples that restart.
    """
    differing = {path for path in theirs.keys() | here.keys() if theirs.get(path) != here.get(path)}
    templates = {path for path in here.keys() - theirs.keys() if Path(path).suffix == ".sh"}
    restarts = {path for path in theirs.keys() - here.keys() if path.endswith(".restart.sh")}
    return differing - templates - restarts


def steps(paths: set[str]) -> set[str]:
    return {path.split("/")[0] for path in paths}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["values", "exits"])
def test_a_study_leaves_the_same_files(left, version, name):
    """Given samples with parameters, tokens, shells, funnels, restarts and retries, then each file is the same."""
    theirs, here = left.of_merlin[version][name], left.here[name]

    assert len(theirs) > 40
    assert {path: (theirs.get(path), here.get(path)) for path in differences(theirs, here)} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_differs_is_what_the_readme_lists(left, version):
    """Given a study with each difference that is kept on purpose, then nothing else differs."""
    theirs, here = left.of_merlin[version]["differs"], left.here["differs"]

    assert steps(differences(theirs, here)) == set().union(*KEPT.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_converted_specification_gives_the_results_of_merlin(left, version):
    """Given the same study, converted, then only what the user must decide, and the table of samples, differs."""
    theirs, here = left.of_merlin[version]["differs"], left.here["converted"]

    assert steps(differences(theirs, here)) == KEPT["Exit code 102"] | KEPT["Quotes in a csv file"]


def test_the_documentation_lists_what_differs():
    rows = [line.split("|")[1].strip() for line in (ROOT / "docs" / "merlin.md").read_text().splitlines() if line.startswith("|")]

    assert KEPT.keys() <= set(rows)


def words_of(schema: object) -> set[str]:
    """Return the names of all keys in a JSON schema."""
    if isinstance(schema, list):
        return set().union(*map(words_of, schema))
    if not isinstance(schema, dict):
        return set()
    properties = schema.get("properties")
    own = set(properties) if isinstance(properties, dict) else set()
    return own.union(*map(words_of, schema.values()))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_of_merlin_is_complete(merlins, version):
    """Given the schema and the help of Merlin, then docs/merlin.md has each key and each command."""
    text = (ROOT / "docs" / "merlin.md").read_text()
    named = {word for phrase in re.findall(r"`([^`\n]+)`", text) for word in (phrase, *re.split(r"[.\[\] ]+", phrase))}
    schema = json.loads((merlins[version].examples.parents[1] / "spec" / "merlinspec.json").read_text())
    usage = subprocess.run([merlins[version].bin / "merlin", "-h"], capture_output=True, text=True, check=True).stdout
    commands = re.search(r"\{([\w,-]+)\}", usage)[1].split(",")

    assert len(commands) > 10
    assert (words_of(schema) | set(commands)) - named == set()


def test_no_cell_of_the_table_is_empty():
    rows = [line for line in (ROOT / "docs" / "merlin.md").read_text().splitlines() if line.startswith("|")]

    assert {row.count(" | ") for row in rows} == {2}
    assert all(cell.strip() for row in rows for cell in row.strip("|").split(" | "))
