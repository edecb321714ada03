"""Damaged files of a study end in a clear error, or change nothing that a user reads: no traceback, no wrong outcome.

Hypothesis damages a file of a real study that was killed, and of a study of each earlier release, in any way: the views
read the study, then the file is as before. `DAMAGE_EXAMPLES=5000 DAMAGE_SEED=1` looks further. Some damages are followed by a real resume, which must either
run each sample to its right end, or name the file.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner
from damages import changed_json, no_files, put
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from releases import RELEASES
from releases import restore as put_back
from support import Study, kill, wait_for

from maestro_celery_plugin.cli import main

EXAMPLES = int(os.environ.get("DAMAGE_EXAMPLES", "150"))
SEED = int(os.environ.get("DAMAGE_SEED", "0"))
COUNT = 12
SPEC = """
    description: {name: damaged, description: d}
    env: {variables: {GATE: gate}}
    study:
      - name: sim
        description: d
        run:
          cmd: |
            echo run >> runs
            [ $(N) -lt 6 ] || [ $(N) -ge 9 ] || { while [ -e $(SPECROOT)/gate ]; do sleep 0.05; done; }
            echo "result $(N) $(V)"
            [ $(N) -ne 3 ] || { echo broken >&2; exit 4; }
      - name: post
        description: d
        run: {cmd: "cat $(sim.workspace)/$(MERLIN_GLOB_PATH)sim.out | wc -l", depends: [sim_*]}
    merlin:
      resources: {workers: {w: {args: --concurrency 4}}}
      samples:
        file: samples.csv
        column_labels: [N, V]
"""
ENDS = ("finished", "failed")
VALUES = {number: f"v{number * 7}" for number in range(COUNT)}
VALUES_OF_RELEASES = dict(enumerate("abcdef"))
# The commands that only read, with the exit codes of a study in any state.
VIEWS = (
    ("status",), ("status", "--json"), ("status", "--failed"), ("samples",), ("samples", "--where", "V == 'v7'"),
    ("failed",), ("explain",), ("report", "--json"), ("session", "show"), ("session", "list"), ("monitor",),
    ("workers", "--list"), ("samples", "--step", "sim"),
)  # fmt: skip
TEXTS = ("", "{}", "[]", "null", "0", '"x"', "[1, 2]", '{"a": 1}', "a,b\n1,2\n", "\ufeff{}", '"\\ud800"', "- a: [", "!!python/name:os.system x")


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Study:
    """A study whose processes were all killed: samples have finished, failed, were running, and had not begun."""
    directory = tmp_path_factory.mktemp("damaged")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(directory), "COLUMNS": "120"}
    (directory / "study.yaml").write_text(textwrap.dedent(SPEC))
    (directory / "samples.csv").write_text("".join(f"{number},{value}\n" for number, value in VALUES.items()))
    (directory / "gate").touch()
    study = Study(directory / "study", environment)
    answer = study.command("maestro", "run", "-y", "-s", "1", "-o", str(study.path), str(directory / "study.yaml"))
    assert answer.returncode == 0, answer.stderr
    try:
        # Slots take the samples in any order: sample 3, which fails, may end after six others.
        wait_for(lambda: len(found := outcomes(study)) >= 6 and 3 in found, "the end of the samples before the gate")
    finally:
        while study.processes():
            kill(*study.processes())  # the server of the broker ends with its host
    (directory / "gate").unlink()
    shutil.copytree(study.path, directory / "as_killed", symlinks=True)
    return study


@pytest.fixture
def damaged(killed) -> Study:
    """The killed study, as it was when it was killed."""
    restore(killed)
    yield killed
    kill(*killed.server(), *killed.processes())
    restore(killed)


def restore(study: Study) -> None:
    shutil.rmtree(study.path)
    shutil.copytree(study.path.with_name("as_killed"), study.path, symlinks=True)


def outcomes(study: Study) -> dict[int, str]:
    """Return the states of the samples that have ended, as `samples` shows them."""
    answer = study.command("maestro-celery", "samples", "--step", "sim", str(study.path))
    return {int(row["id"]): row["state"] for row in rows_of(answer.stdout) if row["state"] in ENDS}


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of the table that `samples` prints into a pipe."""
    return list(csv.DictReader(io.StringIO(text)))


def files_of(study: Study) -> list[Path]:
    """Return the files that the views may read; Maestro's pickle is not among them."""
    place = study.path.with_name("as_killed")
    found = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    own = [path for path in found if "merlin_info" in path.parts or path.name in ("batch.info", "status.csv")]
    return sorted(path.relative_to(place) for path in own)


class Damage:
    """One damage of one file, drawn by Hypothesis."""

    KINDS = ("cut", "flip", "insert", "zeros", "text", "bytes", "other", "append", "repeat", "value", *no_files)

    def __init__(self, data: st.DataObject, root: Path, files: list[Path]) -> None:
        self.file = data.draw(st.sampled_from(files), label="file")
        # What is new in a file of the ledger is read at once.
        without = ("a huge file",) if self.file.suffix == ".ledger" else ()
        self.kind = data.draw(st.sampled_from([kind for kind in self.KINDS if kind not in without]), label="kind")
        self._value = self._other_value(data, root / self.file) if self.kind == "value" else b""
        self._random = random.Random(data.draw(st.integers(0, 2**16), label="seed"))
        self._other = data.draw(st.sampled_from(files), label="other") if self.kind == "other" else self.file

    def __repr__(self) -> str:
        return f"{self.kind} of {self.file}"

    def apply(self, root: Path) -> None:
        path, whole = root / self.file, (root / self.file).read_bytes()
        if self.kind in no_files:
            put(path, self.kind)
        elif self.kind == "value":
            path.write_bytes(self._value)
        else:
            path.write_bytes(self._damaged(whole, (root / self._other).read_bytes()))

    @property
    def may_change_outcomes(self) -> bool:
        """Whether the file may be a sound one that says something else, such as another number of the step record."""
        return self.kind == "value"

    @staticmethod
    def _other_value(data: st.DataObject, path: Path) -> bytes:
        try:
            whole = json.loads(path.read_bytes())
        except ValueError:
            return b"{}"
        return data.draw(changed_json(whole).map(json.dumps).map(str.encode), label="value")

    def _damaged(self, whole: bytes, other: bytes) -> bytes:
        at = self._random.randrange(len(whole) + 1)
        end = min(len(whole), at + self._random.randint(1, 40))
        junk = self._random.randbytes(self._random.randint(1, 60))
        if self.kind == "flip":
            return bytes(whole[:at] + bytes(byte ^ (1 << self._random.randrange(8)) for byte in whole[at:end]) + whole[end:])
        return {
            "cut": whole[:at],
            "insert": whole[:at] + junk + whole[at:],
            "zeros": whole[:at] + bytes(end - at) + whole[end:],
            "text": self._random.choice(TEXTS).encode(),
            "bytes": junk,
            "other": other,
            "append": whole + junk,
            "repeat": whole + whole[at:end],
        }[self.kind]


def restore_file(study: Study, file: Path) -> None:
    path, before = study.path / file, study.path.with_name("as_killed") / file
    put(path, b"")
    shutil.copy2(before, path)


def views(study: Study) -> dict[tuple[str, ...], str]:
    """Call all views in this process; return what they print, and check that none has a traceback."""
    printed = {}
    for words in VIEWS:
        result = CliRunner().invoke(main, [*words, str(study.path)], env={"COLUMNS": "120", "HOME": str(study.path.parent)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.output, (words, result.output)
        if result.exit_code == 1:
            assert "error:" in result.stderr or words[0] in ("status", "explain", "monitor"), (words, result.output)
        printed[words] = result.stdout if result.exit_code == 0 else ""
    return printed


def assert_no_wrong_outcome(
    printed: dict[tuple[str, ...], str], truth: dict[tuple[str, int], str], labels: tuple[str, ...], values: dict[int, tuple[str, ...]]
) -> None:
    """Check each row: the values are those of the sample, and an outcome is the one that it had, or none."""
    empty = (("",) * len(labels), (None,) * len(labels))
    for row in rows_of(printed[("samples", "--step", "sim")]):
        number = int(row["id"])
        assert tuple(map(row.get, labels)) in (values[number], *empty), row
        if row["state"] in ENDS:
            assert truth.get((row["record"], number)) == row["state"], row


def ends_in(printed: dict[tuple[str, ...], str]) -> dict[tuple[str, int], str]:
    """Return the states of the samples that have ended, by step record and number."""
    found = rows_of(printed[("samples", "--step", "sim")])
    return {(row["record"], int(row["id"])): row["state"] for row in found if row["state"] in ENDS}


@pytest.mark.timeout(max(300, 8 * EXAMPLES))
def test_the_views_of_a_damaged_study(killed):
    """Given a damage of any file, then each view shows what it can or names the file, and no outcome is wrong."""
    restore(killed)
    check_views(killed, ("N", "V"), {number: (str(number), value) for number, value in VALUES.items()}, {"failed", "finished"})


@pytest.mark.timeout(max(300, 8 * EXAMPLES))
@pytest.mark.parametrize("release", RELEASES)
def test_the_views_of_a_damaged_study_of_an_earlier_release(release, tmp_path, environment):
    """Given a study of an earlier release, then the views read it, and the same holds for its damaged files."""
    study = Study(put_back(release, tmp_path), environment)
    shutil.copytree(study.path, study.path.with_name("as_killed"), symlinks=True)
    check_views(study, ("VALUE",), {number: (value,) for number, value in VALUES_OF_RELEASES.items()}, {"finished"})


def check_views(study: Study, labels: tuple[str, ...], values: dict[int, tuple[str, ...]], ends: set[str]) -> None:
    files, sound = files_of(study), views(study)
    truth = ends_in(sound)
    assert set(truth.values()) == ends
    assert all(sound[("samples", "--step", "sim")].count(value) for row in values.values() for value in row)
    assert_no_wrong_outcome(sound, truth, labels, values)

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    @given(st.data())
    def check(data: st.DataObject) -> None:
        damage = Damage(data, study.path, files)
        damage.apply(study.path)
        try:
            printed = views(study)
            if not damage.may_change_outcomes:
                assert_no_wrong_outcome(printed, truth, labels, values)
        finally:
            restore_file(study, damage.file)

    check()


def replaced(text: str):
    return lambda path: path.write_text(text)


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Files by pattern, what happens to them, and what the resume must say; with None, all samples must run to their end.
RESUMES = {
    "no key of the messages": ("merlin_info/session/secret", Path.unlink, "was damaged (it does not exist)"),
    "another key of the messages": ("merlin_info/session/secret", replaced("x"), "was damaged (it must have 64"),
    "no member of the session": ("merlin_info/session/studies/*.json", replaced(""), None),
    "a directory for a member": ("merlin_info/session/studies/*.json", as_directory, "s a directory"),
    "an empty ledger of a worker": ("merlin_info/ledger/w-1*", replaced(""), None),
    "no ledger of the conductor": ("merlin_info/ledger/coordinator*", Path.unlink, None),
    "no states": ("status.csv", replaced(""), None),
    "no manifest": ("merlin_info/records/**/manifest.json", Path.unlink, None),
    "half a manifest": ("merlin_info/records/**/manifest.json", replaced('{"study_id": '), "manifest.json' is damaged"),
    "no additions": ("merlin_info/additions.json", Path.unlink, "additions.json' is damaged"),
    "no plan": ("batch.info", replaced(""), "batch.info' is damaged: it is empty"),
    "no group": ("merlin_info/session/groups/*.json", replaced("[]"), None),
}


@pytest.mark.parametrize("damage", RESUMES)
def test_a_resume_of_a_damaged_study_runs_all_samples_or_names_the_file(damaged, damage):
    pattern, change, sentence = RESUMES[damage]
    paths = list(damaged.path.glob(pattern))
    assert paths, pattern
    for path in paths:
        change(path)

    answer = damaged.command("maestro-celery", "resume", "-fg", str(damaged.path))

    said = answer.stdout + answer.stderr
    assert "Traceback" not in said + damaged.log()
    assert sentence is None or sentence in said, said
    results = {int(text.split()[1]): text for text in damaged.outputs("sim/*/sim.out") if text}
    assert all(text.splitlines()[-1] == f"result {number} {VALUES[number]}" for number, text in results.items())
    if sentence is None or "another key" in said:  # the study is as it would be without the damage
        assert answer.returncode == 1  # sample 3 fails
        assert len(results) == COUNT
        assert outcomes(damaged) == {number: "failed" if number == 3 else "finished" for number in range(COUNT)}
    else:
        assert answer.returncode not in (0, 1) or "error:" in said
