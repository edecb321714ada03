"""Samples that are added to a study: whole or not at all, in files that never change, once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from ensembles import RELATIVE, a_manifest, entries
from filelock import FileLock
from msgspec.structs import replace

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.conductor.remaining_work import RemainingWork
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    SampleSettings,
    StepFacts,
)
from maestro_celery_plugin.errors import DamagedFileError, SampleError, StudyError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.maestro import sample_command
from maestro_celery_plugin.maestro.adding import add_file, await_conductor, growing_plan
from maestro_celery_plugin.maestro.growing import repeated
from maestro_celery_plugin.maestro.sample_command import chosen_samples, ended_samples, sample_rows, write_rows
from maestro_celery_plugin.maestro.step_graph import GraphNode
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.additions import (
    AdditionFile,
    Additions,
    are_taken,
    grown,
    open_samples,
    read_additions,
    write_additions,
)
from maestro_celery_plugin.study.conductor_lock import file_lock
from maestro_celery_plugin.study.plan import StudyPlan, study_around
from maestro_celery_plugin.study.session import STUDY_VARIABLE, Session
from maestro_celery_plugin.study.stopped_workers import request_worker_stop
from maestro_celery_plugin.worker.study_context import StudyContext

LABELS = ("X", "Y")


def a_growing_study(root: Path, rows: int = 3, max_samples: int | None = None) -> StudyPlan:
    """Make a study with one finished step record `sim_X.1`; row i of its table is ``i, vi``."""
    root.mkdir()
    table = root / "merlin_info" / "base.csv"
    table.parent.mkdir()
    table.write_text("".join(f"{i},v{i}\n" for i in range(rows)))
    samples = SampleSettings(file=str(table), column_labels=LABELS, max_samples=max_samples)
    settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(), samples=samples)
    plan = StudyPlan(
        root=root, timestamp="t", settings=settings, table=table, rows=rows, planned=max_samples or 0, id=f"{7:016x}"
    )
    (root / "batch.info").write_text(yaml.safe_dump(plan.to_batch()))
    Session.create(plan.session)
    write_additions(plan, Additions(study_id=plan.id))
    (root / RELATIVE).mkdir(parents=True)
    values = {"labels": list(LABELS), "table": str(table), "index_cache": str(plan.info), "study_id": plan.id}
    values |= {"samples": rows, "launched": rows, "planned": plan.hierarchy}
    a_manifest(root, **values).write(plan.records / RELATIVE / "manifest.json")
    return plan


@pytest.fixture
def plan(tmp_path):
    return a_growing_study(tmp_path / "study")


def a_file(directory: Path, rows: int, name: str = "more.csv", start: int = 100) -> Path:
    path = directory / name
    path.write_text("".join(f"{i},v{i}\n" for i in range(start, start + rows)))
    return path


def manifest_of(plan, samples=None):
    """Return the manifest of the step record, with a number of samples that it has taken."""
    manifest = a_manifest(plan.root, labels=list(LABELS), table=str(plan.table), index_cache=str(plan.info))
    manifest = replace(manifest, samples=plan.rows, launched=plan.rows, planned=plan.hierarchy, study_id=plan.id)
    return manifest if samples is None else grown(manifest, samples)


def values(plan):
    """Return all rows as a worker sees them."""
    table = open_samples(manifest_of(plan, plan.rows + read_additions(plan).count))
    return [table.row(index) for index in range(len(table))]


# --- directories ---


def test_a_sample_keeps_its_directory_whatever_is_added():
    for planned in (2, 10, 25, 26, 700):
        before = [SamplePaths(planned, 25).of(index) for index in range(planned)]
        paths = SamplePaths(planned * 7, 25, planned)
        assert [paths.of(index) for index in range(planned)] == before
        assert len(set(paths.all())) == planned * 7
        assert {path.count("/") for path in paths.all()} == {paths.glob.count("/") - 1}


def test_added_samples_continue_the_first_level():
    paths = SamplePaths(2000, 25, 10)
    assert [paths.of(index) for index in (9, 10, 25, 100, 1999)] == ["09", "10", "25", "100", "1999"]


# --- tables ---


@pytest.mark.parametrize("suffix", [".csv", ".tab", ".npy"])
def test_rows_of_each_kind_of_file_follow_those_of_the_launch(plan, tmp_path, suffix):
    path = tmp_path / f"more{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([[0.1, 2.0], [3.0, 1e-9]]))
        expected = [["0.1", "2.0"], ["3.0", "1e-09"]]
    else:
        path.write_text("X,Y\n5,six\n7,8\n".replace(",", "," if suffix == ".csv" else " "))
        expected = [["5", "six"], ["7", "8"]]

    added = add_file(plan, path)
    path.unlink()

    assert (added.start, added.stop, added.total) == (3, 5, 5)
    assert values(plan) == [["0", "v0"], ["1", "v1"], ["2", "v2"], *expected]


def test_a_table_that_is_open_reads_its_rows_while_others_are_added(plan, tmp_path):
    add_file(plan, a_file(tmp_path, 2))
    table = open_samples(manifest_of(plan, 5))
    for number in range(20):
        add_file(plan, a_file(tmp_path, 1, start=1000 + number))
    assert [table.row(index)[1] for index in range(5)] == ["v0", "v1", "v2", "v100", "v101"]
    assert len(table) == 5 or table.row(5)[1] == "v1000"
    assert len(values(plan)) == 25


def test_many_additions_do_not_need_many_descriptors(plan, tmp_path):
    for number in range(40):
        add_file(plan, a_file(tmp_path, 1, start=1000 + number))
    table = open_samples(manifest_of(plan, 43))
    before = len(os.listdir("/proc/self/fd"))
    assert [table.row(index)[1] for index in range(3, 43)] == [f"v{1000 + number}" for number in range(40)]
    assert len(os.listdir("/proc/self/fd")) - before < 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n", "merlin.samples.column_labels: 2 labels (X, Y), but '{file}' has 1 column;"),
        ("1,2\n3\n", "merlin.samples.file: row 1 of '{file}' (line 2) has 1 columns, row 0 has 2"),
        ("", "merlin.samples.file: '{file}' has no samples; at least one row is needed."),
        ("#Y,X\n1,2\n", "'{file}' has the columns Y, X, but the labels are X, Y"),
    ],
)
def test_a_file_is_checked_as_at_the_launch_and_named_as_the_user_knows_it(plan, tmp_path, text, message):
    path = tmp_path / "more.csv"
    path.write_text(text)
    with pytest.raises(SampleError) as error:
        add_file(plan, path)
    assert message.format(file=path) in str(error.value)
    assert read_additions(plan).added == ()
    # And a correct file is added afterwards.
    assert add_file(plan, a_file(tmp_path, 2)).total == 5
    assert len(values(plan)) == 5


def test_python_objects_are_never_unpickled(plan, tmp_path):
    np.save(tmp_path / "more.npy", np.array([["a", 1]], dtype=object))
    with pytest.raises(SampleError, match="pickled code"):
        add_file(plan, tmp_path / "more.npy")


def test_a_missing_file_is_named(plan, tmp_path):
    with pytest.raises(SampleError, match=r"there is no file '.*/none\.csv'"):
        add_file(plan, tmp_path / "none.csv")


# --- once ---


def test_the_same_content_is_added_once(plan, tmp_path):
    first = add_file(plan, a_file(tmp_path, 2))
    again = add_file(plan, a_file(tmp_path, 2, name="other.csv"))
    assert (again.start, again.stop, again.total, again.is_new) == (first.start, first.stop, 5, False)
    assert again.sentence == "An earlier call has added these samples (3 to 4); nothing is added. The study has 5."


def test_the_same_key_is_added_once_and_another_key_again(plan, tmp_path):
    assert add_file(plan, a_file(tmp_path, 2), key="iteration 1").total == 5
    assert add_file(plan, a_file(tmp_path, 3, start=50), key="iteration 1").total == 5
    assert add_file(plan, a_file(tmp_path, 2), key="iteration 2").total == 7


def _add_one(arguments):
    root, path = arguments
    return add_file(StudyPlan.read(root), path).start


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the test starts no thread
def test_two_processes_wait_for_each_other(plan, tmp_path):
    files = [a_file(tmp_path, 3, name=f"{number}.csv", start=1000 * (number + 1)) for number in range(6)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        starts = pool.map(_add_one, [(plan.root, path) for path in files])
    assert sorted(starts) == [3, 6, 9, 12, 15, 18]
    rows = values(plan)
    for start, path in zip(starts, files, strict=True):
        assert [",".join(row) for row in rows[start : start + 3]] == path.read_text().split()


def _add_until_killed(plan, path, operation):
    """Add samples in a child process that kills itself before a file operation; return whether it was killed."""
    child = os.fork()
    if child == 0:
        left = [operation]

        def kill_before(event, arguments):
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if is_write or event in ("os.rename", "os.remove", "os.mkdir", "os.link"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill_before)
        try:
            add_file(plan, path)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_killed_before_any_file_operation_adds_all_or_nothing_and_can_be_repeated(tmp_path):
    """Given an addition whose process is killed at each of its file operations, then its repetition completes it."""
    operation, whole = 0, set()
    while True:
        plan = a_growing_study(tmp_path / str(operation))
        path = a_file(tmp_path, 4, name=f"more{operation}.csv")
        was_killed = _add_until_killed(plan, path, operation)
        whole.add(read_additions(plan).count)
        if read_additions(plan).count:
            assert len(values(plan)) == 7
        assert add_file(plan, a_file(tmp_path, 2, name="other.csv", start=50)).total in (5, 9)
        assert add_file(plan, path).total == 9
        assert sorted(values(plan)) == sorted([[str(i), f"v{i}"] for i in (0, 1, 2, 50, 51, 100, 101, 102, 103)])
        operation += 1
        if not was_killed:
            break
    assert operation > 8
    assert whole == {0, 4}


# --- how many ---


@pytest.fixture
def limited(tmp_path):
    return a_growing_study(tmp_path / "study", max_samples=6)


def test_rows_beyond_max_samples_are_left_out(limited, tmp_path):
    added = add_file(limited, a_file(tmp_path, 5))
    assert added.sentence == (
        "Added 3 samples (3 to 5); 2 more are left out (merlin.samples.max_samples). The study has 6 samples."
    )
    assert [row[0] for row in values(limited)] == ["0", "1", "2", "100", "101", "102"]
    full = add_file(limited, a_file(tmp_path, 1, start=7))
    assert full.start == full.stop == full.total == 6
    assert full.sentence.startswith("Nothing is added; 1 more is left out")


def test_max_samples_decides_on_the_levels_at_the_launch(tmp_path):
    plan = a_growing_study(tmp_path / "study", max_samples=100)
    assert manifest_of(plan).paths.of(2) == "00/02"
    assert manifest_of(plan, 60).paths.of(59) == "02/09"


def test_a_study_that_cannot_grow_says_why(tmp_path):
    one = a_growing_study(tmp_path / "one", rows=1)
    with pytest.raises(StudyError, match=r"one sample.*merlin\.samples\.max_samples: N"):
        growing_plan(one.root)
    assert growing_plan(a_growing_study(tmp_path / "planned", rows=1, max_samples=5).root).rows == 1
    dry = a_growing_study(tmp_path / "dry")
    for path in sorted(dry.session.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    dry.session.rmdir()
    with pytest.raises(StudyError, match="dry run"):
        growing_plan(dry.root)


@pytest.mark.parametrize("damage", [b"{", b"", b"\xff", b"[]", b'{"study_id": "1", "added": []}', b'{"study_id": "\\ud800"}', None])
def test_damage_is_reported_and_not_taken_for_no_additions(plan, damage):
    path = plan.info / "additions.json"
    path.write_bytes(damage) if damage is not None else path.unlink()
    for read in (lambda: read_additions(plan), AdditionFile(plan).total):
        with pytest.raises(DamagedFileError, match=r"additions\.json"):
            read()


def test_samples_that_a_damaged_file_has_lost_are_missed(plan, tmp_path):
    """Given a step record with added samples, when the additions are lost, then no sample has values of another one."""
    add_file(plan, a_file(tmp_path, 2))
    manifest = manifest_of(plan, 5)
    write_additions(plan, Additions(study_id=plan.id))
    with pytest.raises(DamagedFileError, match="it has not all 2 added samples"):
        open_samples(manifest)
    (plan.info / "additions.json").unlink()
    with pytest.raises(DamagedFileError, match="it does not exist"):
        open_samples(manifest)


def test_a_study_of_an_earlier_release_has_no_file_of_additions(plan):
    assert read_additions(dataclasses.replace(plan, id="0")) == Additions(study_id=plan.id)
    (plan.info / "additions.json").unlink()
    assert read_additions(dataclasses.replace(plan, id="0")) == Additions()


def test_a_follower_sees_each_addition(plan, tmp_path):
    follower = AdditionFile(plan)
    assert follower.total() == 3
    for number in range(1, 4):
        add_file(plan, a_file(tmp_path, 1, start=number * 100))
        assert follower.total() == 3 + number


# --- states ---


def test_states_that_grow_equal_those_of_more_samples_from_the_beginning():
    random = np.random.default_rng(5)
    kinds = [Kind.SENT, Kind.STARTED, Kind.ENDED, Kind.LOST, Kind.STOPPED, Kind.RERUN, Kind.INVALID, Kind.CANCELLED]
    for _ in range(50):
        rows = [
            (kind, int(random.integers(8)), int(random.integers(1, 5)), int(random.choice([0, 1, 100, 102, 104])))
            for kind in random.choice(kinds, 60)
        ]
        first, later = entries(*rows), entries(*[(k, s + 4, e, c) for k, s, e, c in rows])
        small, large = SampleStates(8, 2), SampleStates(12, 2)
        small.apply(first)
        small.grow(12)
        small.apply(later)
        large.apply(first)
        large.apply(later)
        assert small.outcome.tolist() == large.outcome.tolist()
        assert small.counts() == large.counts()
        assert small.mode.tolist() == large.mode.tolist()
        assert small.running.tolist() == large.running.tolist()


def test_a_worker_reads_a_manifest_again_under_a_higher_epoch(plan, tmp_path):
    path = plan.records / RELATIVE / "manifest.json"
    context = StudyContext(plan.root, plan.id, "w-1")
    before, runner = context.runner(RELATIVE, 1)
    add_file(plan, a_file(tmp_path, 2))
    manifest_of(plan, 5).write(path)

    assert context.runner(RELATIVE, 1) == (before, runner)
    manifest, again = context.runner(RELATIVE, 2)
    assert manifest.samples == 5
    assert again.directories.make(4)
    assert "#!/bin/bash" in (plan.root / RELATIVE / "04" / "sim.sh").read_text()
    assert context.runner(RELATIVE, 3) == (manifest, again)
    assert context.runner(RELATIVE, 1) == (manifest, again)


def test_status_follows_a_study_that_grows(plan, tmp_path):
    ledger = LedgerWriter(plan.ledger / "w-1.ledger", plan.number)

    def finish(*samples):
        for sample in samples:
            ledger.append(Kind.STARTED, 1, 1, sample)
            ledger.append(Kind.ENDED, 1, 1, sample)

    finish(0, 1, 2)
    reader = StatusReader(plan.root)
    assert reader.read().steps[0].samples.finished == 3
    add_file(plan, a_file(tmp_path, 4))
    status = reader.read()
    assert (status.waiting_additions, status.steps[0].samples.total) == (4, 3)
    assert not are_taken(plan, 7)
    assert status.additions_sentence == "4 added samples wait, and the study has no conductor." or not status.has_ended

    manifest_of(plan, 7).write(plan.records / RELATIVE / "manifest.json")
    finish(3, 4)
    status = reader.read()
    assert (status.waiting_additions, status.steps[0].samples.finished, status.steps[0].samples.pending) == (0, 5, 2)
    assert StatusReader(plan.root).read().steps[0].samples == status.steps[0].samples
    assert are_taken(plan, 7)
    ledger.close()


# --- what runs again ---


def node(name, *parents, sampled=True, text=""):
    return GraphNode(
        root=Path("/s"), name=name, step=name, relative=name, parents=parents, sampled=sampled, is_native=False, text=text
    )


def test_what_depends_on_all_samples_runs_again_and_what_reads_its_own_only_grows():
    nodes = [
        node("sim"),
        node("post", "sim", text="cat /s/sim/$(MERLIN_SAMPLE_PATH)/out"),
        node("compare", "sim", text="cat /s/sim/$(MERLIN_GLOB_PATH)/out"),
        node("collect", "post", sampled=False),
        node("last", "collect", sampled=False),
        node("after", "compare", text="cat /s/compare/$(MERLIN_SAMPLE_PATH)/out"),
        node("other", sampled=False),
    ]
    assert repeated(nodes, ["sim", "post", "compare", "after"]) == {
        **{"sim": False, "post": False, "compare": True},
        **{"collect": True, "last": True, "after": True},
    }
    assert repeated(nodes, []) == {}


# --- the command that chooses samples ---


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"X": 1, "Y": "two"}\n\n{"Y": 4.50, "X": -3e-2}\n', [["1", "two"], ["-3e-2", "4.50"]]),
        ('[1, "#"]\n["X", "Y"]', [["1", "#"], ["X", "Y"]]),
        ('[[1, 2], {"X": "", "Y": "a,\\"b\\"\\nc"}]', [["1", "2"], ["", 'a,"b"\nc']]),
    ],
)
def test_json_lines_become_rows_with_the_same_text(plan, tmp_path, text, rows):
    found = sample_rows(text, LABELS)
    assert found == rows
    write_rows(tmp_path / "rows.csv", LABELS, found)
    add_file(plan, tmp_path / "rows.csv")
    assert values(plan)[3:] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"X": 1}', "line 1 of the output has no value for 'Y'; each of X, Y is needed"),
        ('{"X": 1, "Y": 2}\n{"X": 1, "Y": 2, "Z": 3}', "line 2 of the output has a value for 'Z', which is no column"),
        ("[1]", "line 1 of the output has 1 values; one for each of X, Y is needed"),
        ('{"X": 1, "Y": null}', "has the value 'null'; numbers and text can be samples"),
        ('{"X": 1, "Y": true}', "has the value 'true'"),
        ("{1}", "line 1 of the output is not JSON"),
        ("[1, 2]\n3", "line 2 of the output is '3'; an object with the labels, or a list of values"),
    ],
)
def test_a_wrong_line_is_named(text, message):
    with pytest.raises(SampleError, match=message):
        sample_rows(text, LABELS)


def test_the_command_reads_the_samples_that_have_ended(plan, tmp_path):
    ledger = LedgerWriter(plan.ledger / "w-1.ledger", plan.number)
    for sample, code in ((0, 0), (2, 3)):
        ledger.append(Kind.STARTED, 1, 1, sample)
        ledger.append(Kind.ENDED, 1, 1, sample, code=code)
    ledger.append(Kind.STARTED, 1, 1, 1)
    ledger.close()

    common = {"step": "sim", "step_record": "sim_X.1", "parameters": {}}
    assert list(ended_samples(plan)) == [
        {"id": 0, **common, "values": {"X": 0, "Y": "v0"}, "state": "FINISHED", "exit_code": 0, "directory": f"{plan.root}/{RELATIVE}/00"},
        {"id": 2, **common, "values": {"X": 2, "Y": "v2"}, "state": "FAILED", "exit_code": 3, "directory": f"{plan.root}/{RELATIVE}/02"},
    ]
    command = f"cat > {tmp_path}/table; echo 7,8"
    path = chosen_samples(plan, command, (), tmp_path)
    assert path.read_text() == "7,8\n"
    assert [json.loads(line)["id"] for line in (tmp_path / "table").read_text().splitlines()] == [0, 2]
    assert chosen_samples(plan, "true", (), tmp_path) is None
    with pytest.raises(SampleError, match="--from-command: the command ended with exit code 4; nothing is added"):
        chosen_samples(plan, "echo 1,2; exit 4", (), tmp_path)
    with pytest.raises(StudyError, match="--step: the study has no step 'sum'"):
        chosen_samples(plan, "true", ("sum",), tmp_path)


# --- the command line ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'FILE', or --from-command."),
        (["a", "b", "c"], "Give one FILE, after STUDY, or --from-command."),
        (["a", "b", "--from-command", "true"], "Give one FILE, after STUDY, or --from-command."),
        (["a", "b", "--step", "sim"], "--step needs --from-command."),
    ],
)
def test_wrong_arguments_are_refused(words, message):
    result = CliRunner().invoke(main, ["add-samples", *words])
    assert result.exit_code == 2
    assert message in result.output


def test_the_command_in_a_step_and_outside_of_it(plan, tmp_path, monkeypatch):
    """Given a study that has ended, then the command says what to type, and what it has done."""
    path = a_file(tmp_path, 2)
    monkeypatch.delenv(STUDY_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert "give the directory of the study before the file" in CliRunner().invoke(main, ["add-samples", "m"]).output
    resume = f"The study has no conductor; `maestro-celery resume {plan.root}` runs them."
    result = CliRunner().invoke(main, ["add-samples", str(plan.root), str(path)])
    assert result.output.splitlines() == ["Added 2 samples (3 to 4). The study has 5 samples.", resume]
    monkeypatch.chdir(plan.root / RELATIVE)
    result = CliRunner().invoke(main, ["add-samples", "--from-command", "echo '[5, 6]'; cat > /dev/null"])
    assert result.output.splitlines() == ["Added 1 sample (5). The study has 6 samples.", resume]
    result = CliRunner().invoke(main, ["add-samples", "--from-command", "echo; cat > /dev/null"])
    assert result.output == "The command has printed no samples; nothing is added.\n"
    result = CliRunner().invoke(main, ["add-samples", "--from-command", "echo 1"])
    assert result.exit_code == 1
    assert "2 labels (X, Y), but 'the output of the command' has 1 column;" in result.output


# --- allocations ---


@pytest.mark.parametrize(("max_samples", "stays"), [(None, False), (3, False), (4, True)])
def test_the_allocation_of_a_sampled_step_stays_while_samples_may_be_added(tmp_path, max_samples, stays):
    """Given a finished sampled step, when another step still runs, then the next samples find workers."""
    plan = a_growing_study(tmp_path / "study", max_samples=max_samples)
    steps = {"sim": StepFacts(queues=("simulations",), sampled=True), "learn": StepFacts(queues=("others",))}
    plan = dataclasses.replace(plan, settings=replace(plan.settings, steps=steps))

    def uses(state):
        rows = (f"{name},--,{name},{now},,,,,,0," for name, now in (("sim", "FINISHED"), ("learn", state)))
        (plan.root / "status.csv").write_text("\n".join(["header", *rows]))
        return RemainingWork(plan).uses_any_of({"simulations"})

    assert (uses("RUNNING"), uses("FINISHED")) == (stays, False)


# --- which study ---


def test_a_step_knows_its_study_by_its_directory_then_by_its_environment(plan, tmp_path, monkeypatch):
    monkeypatch.delenv(STUDY_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert study_around() is None
    monkeypatch.setenv(STUDY_VARIABLE, "/other/study")
    assert study_around() == Path("/other/study")
    monkeypatch.chdir(plan.root / RELATIVE)
    assert study_around() == plan.root


def test_the_environment_of_samples_names_the_study(plan):
    joined = dataclasses.replace(plan, home=plan.root.parent / "first")
    (plan.root / "batch.info").write_text(yaml.dump(joined.to_batch()))
    assert StudyContext(plan.root, plan.id, "w-2").variables == {STUDY_VARIABLE: str(plan.root)}


def test_each_outcome_has_a_state_for_the_command():
    assert sample_command._STATES.keys() == {*Outcome} - {Outcome.OPEN}


def test_added_samples_of_a_study_whose_workers_are_stopped_wait_for_a_resume(plan):
    """Given a conductor that waits because all workers are stopped, then the answer names the command that starts them."""
    Session.create(plan.session)
    request_worker_stop(plan.session, None, "why")
    with FileLock(file_lock(plan).lock_file):
        sentence, is_taken = await_conductor(plan, plan.rows, wait=False)

    assert is_taken
    assert sentence == f"They wait, because workers are stopped; `maestro-celery resume {plan.root}` starts these again."
