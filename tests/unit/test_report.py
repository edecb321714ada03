"""The summary of a study for its report, from made ledgers."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from report_studies import BEGIN, MadeStudy, attempt, entries, lease, many_samples

from maestro_celery_plugin import clock
from maestro_celery_plugin.cli import main
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import ENTRY, Kind
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.report import page as report_page
from maestro_celery_plugin.report import study_ledger
from maestro_celery_plugin.report.busy_timeline import BINS, BusyTimeline
from maestro_celery_plugin.report.failure_space import by_category, by_number, failure_plane
from maestro_celery_plugin.report.redaction import REDACTED, redacted
from maestro_celery_plugin.report.slot_use import ENDS, SlotUse
from maestro_celery_plugin.report.study_summary import summarize
from maestro_celery_plugin.samples.table import rows_of
from maestro_celery_plugin.states import ExitCode, WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.worker_facts import WorkerFacts, read_facts, write_facts

# --- busy slots over time ---


def test_busy_slots_are_exact_whatever_the_order_of_the_intervals():
    """Two slots are busy from 0 to 100, and a third one from 50 to 60: 210 seconds, at most three slots."""
    timeline = BusyTimeline()
    timeline.add("sim", np.array([1050.0]), np.array([1060.0]))
    timeline.add("sim", np.array([1000.0, 1000.0]), np.array([1100.0, 1100.0]))
    timeline.add("post", np.array([1100.0]), np.array([1101.0]))

    began_at, bin_s, busy = timeline.result()

    assert busy["sim"].sum() * bin_s == pytest.approx(210)
    assert busy["post"].sum() * bin_s == pytest.approx(1)
    assert busy["sim"].max() == pytest.approx(3)
    assert began_at <= 1000 < began_at + bin_s
    assert BINS / 4 <= len(busy["sim"]) <= BINS


def test_a_timeline_of_months_keeps_its_seconds():
    starts = BEGIN + np.arange(0, 1e7, 1e4)
    timeline = BusyTimeline()
    for at in range(0, len(starts), 100):
        timeline.add("sim", starts[at : at + 100], starts[at : at + 100] + 0.5)

    _, bin_s, busy = timeline.result()

    assert busy["sim"].sum() * bin_s == pytest.approx(0.5 * len(starts), rel=1e-6)


# --- slots ---


def test_the_slot_time_of_an_allocation_adds_up():
    """Given two slots for 100 s, then each second has one part: 200 s in all."""
    use = [
        *lease(10, 50, attempt(0, 11, 31), attempt(1, 31, 41, code=1), attempt(2, 42, 50, code=ExitCode.RETRY)),
        *lease(60, 90, attempt(3, 60, 90, end=Kind.STOPPED)),
        *lease(20, 80, attempt(4, 20, 80, slot=1), slot=1),
    ]
    slots = SlotUse()
    ended, endless = slots.add(entries(use))

    assert not len(endless)
    assert dict(zip(ENDS, np.bincount(ended.end, minlength=7).tolist(), strict=True)) == {
        "finished": 2, "failed": 1, "again": 1, "interrupted": 1, "lost": 0, "running": 0, "not_run": 0,
    }  # fmt: skip
    assert slots.seconds.sum() == pytest.approx(128)
    assert slots.held_s == pytest.approx(130)
    assert slots.span_s == pytest.approx(140)


def parts(tmp_path: Path, rows: list[tuple], **more: list[tuple]) -> dict[str, float]:
    """Return the slot time of a study with one allocation of two slots from 0 to 100."""
    study = MadeStudy(tmp_path / "study")
    study.record(1, "sim", 10)
    study.ledger("sim-1-1", rows)
    for writer, entries_of_writer in more.items():
        study.ledger(writer, entries_of_writer)
    study.facts("sim-1-1", "node1", "sim/1", 2)
    study.allocation(1, slots=2, submitted_at=-50.0, began_at=0.0, ended_at=100.0)
    summary = summarize(study.plan.root)
    assert summary.slot_time.total == pytest.approx(200)
    assert sum(summary.to_json()["slot_time"].values()) == pytest.approx(200)
    assert summary.slot_time == summary.allocations[0].slot_time
    assert summary.allocations[0].submitted_at == BEGIN - 50
    return {name: round(seconds, 6) for name, seconds in summary.slot_time.parts().items() if seconds > 1e-6}


def test_slot_time_by_part(tmp_path):
    rows = [
        *lease(10, 50, attempt(0, 11, 31), attempt(1, 31, 41, code=1), attempt(2, 42, 50, code=ExitCode.RETRY)),
        *lease(60, 90, attempt(3, 60, 90, end=Kind.STOPPED)),
        *lease(20, 80, attempt(4, 20, 80, slot=1), slot=1),
    ]
    assert parts(tmp_path, rows) == {
        "finished": 80, "failed": 10, "again": 8, "interrupted": 30,
        "overhead": 2, "waiting": 10, "starting": 30, "ending": 30,
    }  # fmt: skip


def test_a_slot_that_never_works_is_not_used(tmp_path):
    assert parts(tmp_path, lease(0, 100, attempt(0, 0, 100))) == {"finished": 100, "unused": 100}


def test_a_lost_attempt_lasts_until_the_coordinator_declares_it_lost(tmp_path):
    rows = lease(0, 10, attempt(0, 0, 10)) + lease(10, 99, attempt(1, 10, 99))[:2]
    lost = [(Kind.LOST, 0, 0, 1, 1, 1, 0, 40.0)]
    assert parts(tmp_path, rows, coordinator=lost) == {"finished": 10, "lost": 30, "ending": 90, "unused": 70}


def test_a_loss_that_is_noticed_after_the_end_of_the_allocation_is_shortened(tmp_path):
    rows = lease(0, 99, attempt(0, 0, 99))[:2] + lease(0, 100, attempt(1, 0, 100, slot=1), slot=1)
    lost = [(Kind.LOST, 0, 0, 1, 1, 0, 0, 400.0)]
    assert parts(tmp_path, rows, coordinator=lost) == {"finished": 100, "lost": 100}


def test_samples_of_other_studies_of_the_session_are_not_idle_time(tmp_path):
    """Given a worker that has samples of this study until 50, and of another one from 50 to 90."""
    study, other = MadeStudy(tmp_path / "study"), MadeStudy(tmp_path / "other", number=2)
    for one in (study, other):
        one.record(1, "sim", 2)
    members = Members(study.plan.session)
    members.write(Member(id="1", number=1, root=str(study.plan.root)))
    members.write(Member(id="2", number=2, root=str(other.plan.root)))
    study.ledger("sim-1-1", lease(0, 50, attempt(0, 0, 50)))
    other.ledger("sim-1-1", lease(50, 90, attempt(0, 50, 90)))
    study.facts("sim-1-1", "node1", "sim/1")
    study.allocation(1, began_at=0.0, ended_at=100.0)

    found = summarize(study.plan.root).slot_time

    assert found.total == pytest.approx(100)
    assert (found.finished, found.other_studies, found.ending) == pytest.approx((50, 40, 10))


def test_an_allocation_drains_from_the_time_when_its_first_slot_runs_out_of_samples(tmp_path):
    study = MadeStudy(tmp_path / "study")
    study.record(1, "sim", 3)
    rows = lease(5, 60, attempt(0, 5, 60)) + lease(6, 90, attempt(1, 6, 90, slot=1), slot=1)
    study.ledger("sim-1-1", rows)
    study.ledger("sim-1-0", lease(1, 4, attempt(2, 1, 4)))  # a worker that was replaced
    for worker in ("sim-1-0", "sim-1-1"):
        study.facts(worker, "node1", "sim/1", 2)
    study.allocation(1, slots=2, submitted_at=-9.0, began_at=0.0, ended_at=100.0)

    one = summarize(study.plan.root).allocations[0]

    times = (one.submitted_at, one.began_at, one.first_work_at, one.draining_at, one.last_work_at, one.ended_at)
    assert times == tuple(BEGIN + time for time in (-9, 0, 1, 60, 90, 100))


def test_an_attempt_of_a_live_worker_runs_and_one_of_a_dead_worker_is_lost(tmp_path, monkeypatch):
    study = MadeStudy(tmp_path / "study")
    study.record(1, "sim", 2, state="RUNNING")
    process = ProcessId.of(os.getpid())
    identity = (process.pid, process.start)
    for number, pid in ((1, identity), (2, (2**22 + 1, 1))):
        study.ledger(f"sim-{number}", lease(0, 9, attempt(number - 1, 0, 9))[:2])
        study.beat(
            name=f"sim-{number}", group="sim", host=os.uname().nodename, node=f"node{number}", supervisor=pid,
            process=pid, slots=1, beat=1, state=WorkerState.BUSY,
        )  # fmt: skip
    monkeypatch.setattr(clock, "now", lambda: BEGIN + 20)

    summary = summarize(study.plan.root)

    assert summary.steps[0].attempts["running"] == 1
    assert summary.steps[0].attempts["lost"] == 1
    assert summary.slot_time.running == pytest.approx(20)
    assert {node.name: node.lost for node in summary.nodes} == {"node1": 0, "node2": 1}


def test_the_result_does_not_depend_on_the_parts_in_which_the_ledger_is_read(tmp_path, monkeypatch):
    study = many_samples(tmp_path / "study", 300)
    monkeypatch.setattr(clock, "now", lambda: BEGIN + 1e5)
    whole = summarize(study.plan.root).to_json()
    monkeypatch.setattr(study_ledger, "PART_BYTES", 7 * ENTRY.itemsize)
    in_parts = summarize(study.plan.root).to_json()

    busy_s = [sum(line["busy"]["simulate"]) * line["bin_s"] for line in (whole["timeline"], in_parts["timeline"])]
    assert busy_s[0] == pytest.approx(busy_s[1], rel=1e-4)
    assert in_parts["slot_time"] == pytest.approx(whole["slot_time"])
    for key in ("steps", "failures", "columns", "plane", "slowest"):
        assert in_parts[key] == whole[key]
    assert [node["name"] for node in in_parts["nodes"]] == [node["name"] for node in whole["nodes"]]


# --- samples ---


def test_attempts_and_retries_are_counted(tmp_path):
    study = MadeStudy(tmp_path / "study")
    study.record(1, "sim", 3)
    again = [attempt(0, n, n + 0.5, code=ExitCode.RETRY, epoch=n) for n in (1, 2)]
    study.ledger("sim-1", lease(0, 9, *again, attempt(0, 3, 4, epoch=3), attempt(1, 4, 5), attempt(2, 5, 6, code=7)))

    step = summarize(study.plan.root).steps[0]

    assert step.samples_by_attempts == (2, 0, 1)
    assert {end: count for end, count in step.attempts.items() if count} == {"finished": 2, "failed": 1, "again": 2}
    assert (step.samples, step.finished, step.failed) == (3, 2, 1)
    assert sum(one.finished for one in step.durations) == 2
    assert (step.first_start, step.last_end) == (BEGIN + 1, BEGIN + 6)
    assert step.median_s == pytest.approx(1)


def test_a_sample_that_could_not_run_is_an_attempt_of_its_machine(tmp_path):
    study = MadeStudy(tmp_path / "study")
    study.record(1, "sim", 2)
    fault = [(Kind.STARTED, 0, 0, 1, 1, 0, 0, 1.0), (Kind.NOT_RUN, 0, -1002, 1, 1, 0, 2**63, 1.0)]
    study.ledger("sim-1", lease(0, 9, fault, attempt(1, 2, 3)))
    study.facts("sim-1", "node7")

    summary = summarize(study.plan.root)

    assert [(node.name, node.not_run, node.attempts) for node in summary.nodes] == [("node7", 1, 1)]
    assert summary.slot_time.finished == pytest.approx(1)


def test_each_failure_counts_in_a_million_samples_and_its_values_are_named():
    values = np.linspace(0, 1, 1_000_000)
    failed = (values > 0.9999).astype(int)
    column = by_number("X", values, np.ones_like(failed), failed)

    assert sum(one.failed for one in column.bins) == failed.sum() == 100
    assert sum(one.samples for one in column.bins) == 1_000_000
    assert column.sentence == "All 100 failed samples have X ≥ 0.999901; no other sample has."


@pytest.mark.parametrize(
    ("failed", "sentence"),
    [
        ([1, 1, 0, 0, 0, 0], "All 2 failed samples have X ≤ 1; no other sample has."),
        ([0, 0, 0, 0, 1, 1], "All 2 failed samples have X ≥ 4; no other sample has."),
        ([0, 1, 0, 1, 0, 0], "All 2 failed samples have X between 1 and 3; 1 of 4 other samples have, too."),
        ([1, 0, 0, 0, 0, 1], ""),
        ([0, 0, 0, 0, 0, 0], ""),
        ([1, 1, 1, 1, 1, 1], ""),
    ],
)
def test_the_range_of_failures_is_named_if_few_other_samples_are_in_it(failed, sentence):
    assert by_number("X", np.arange(6.0), np.ones(6, int), np.array(failed)).sentence == sentence


def test_a_column_with_one_value_or_none_has_bins():
    ones = np.ones(3, int)
    for values in (np.zeros(3), np.full(3, 7.0), np.full(3, np.nan), np.array([1, 2, np.nan])):
        column = by_number("X", values, ones, ones)
        assert sum(one.failed for one in column.bins) == np.isfinite(values).sum()
        plane = failure_plane(("X", values), ("Y", np.arange(3.0)), ones, ones)
        assert sum(failed for *_, failed in plane.cells) == np.isfinite(values).sum()


def test_values_drawn_on_a_logarithmic_scale_have_such_bins():
    failed = np.repeat([1, 0], 500)
    drawn = by_number("X", np.geomspace(1e-6, 1e2, 1000), np.ones(1000, int), failed)
    uniform = by_number("X", np.linspace(1e-6, 1e2, 1000), np.ones(1000, int), failed)

    assert (drawn.is_log, uniform.is_log) == (True, False)
    assert sum(one.failed for one in drawn.bins) == 500
    assert max(one.samples for one in drawn.bins) < 40
    assert (drawn.bins[0].start, drawn.bins[-1].stop) == pytest.approx((1e-6, 1e2))


def test_categories_are_those_with_most_failures():
    counts = {f"v{n}": (10, n) for n in range(30)}
    column = by_category("KIND", counts)
    assert column.categories[0].value == "v29"
    assert (len(column.categories), column.others) == (20, 10)
    assert by_category("KIND", {"a": (5, 0), "b": (5, 2), "c": (5, 0), "d": (5, 0)}).sentence == (
        "All 2 failed samples have KIND = b."
    )


def test_failures_by_sample_value_and_by_parameter(tmp_path):
    table = "".join(f"{i},{'ab'[i % 2]}\n" for i in range(10))
    study = MadeStudy(tmp_path / "study", ("X", "KIND"), table, 10)
    for number, bad in ((1, 8), (2, 10)):
        study.record(number, "sim", 10, params=f"GAIN:{number}")
        runs = [attempt(i, 20 * number + i, 20 * number + i + 1, code=int(i >= bad), record=number) for i in range(10)]
        study.ledger(f"sim-{number}", lease(20 * number, 20 * number + 10, *runs, record=number))

    summary = summarize(study.plan.root)

    columns = {column.label: column for column in summary.columns}
    assert set(columns) == {"X", "KIND", "GAIN"}
    assert columns["X"].sentence == "All 2 failed samples have X ≥ 8; no other sample has."
    assert [(one.value, one.samples, one.failed) for one in columns["GAIN"].categories] == [("1", 10, 2), ("2", 10, 0)]
    assert [(kind.end, kind.samples, kind.values) for kind in summary.failures] == [
        ("exit code 1", 2, {"X": "8", "KIND": "a"})
    ]


def test_a_parameter_with_many_numbers_has_bins(tmp_path):
    study = MadeStudy(tmp_path / "study", ("X",), "1\n", 1)
    for number in range(1, 51):
        study.record(number, "sim", 1, params=f"P:{number}")
        run = attempt(0, number, number + 1, code=int(number > 45), record=number)
        study.ledger(f"sim-{number}", lease(number, number + 1, run, record=number))

    column = next(column for column in summarize(study.plan.root).columns if column.label == "P")

    assert column.sentence == "All 5 failed samples have P ≥ 46; no other sample has."
    assert sum(one.samples for one in column.bins) == 50
    assert sum(one.failed for one in column.bins) == 5


def test_a_table_that_has_changed_costs_only_the_values(tmp_path):
    study = many_samples(tmp_path / "study", 200)
    summarize(study.plan.root)
    study.table.write_text("other\n")

    summary = summarize(study.plan.root)

    assert summary.columns == ()
    assert summary.failures
    assert any("cannot be read" in remark for remark in summary.remarks)


# --- machines ---


def compared(tmp_path: Path, **seconds: float) -> dict[str, tuple[str, ...]]:
    """Return the remarks about machines whose samples take so long; one in `bad` lets each second sample fail."""
    study = MadeStudy(tmp_path / "study")
    study.record(1, "sim", 100 * len(seconds))
    for place, (node, each) in enumerate(seconds.items()):
        runs = [
            attempt(100 * place + i, each * i, each * (i + 1), code=int(node == "bad" and i % 2)) for i in range(100)
        ]
        study.ledger(f"sim-{place}", lease(0, each * 100, *runs))
        study.facts(f"sim-{place}", node)
    return {node.name: node.remarks for node in summarize(study.plan.root).nodes}


def test_a_slow_machine_and_one_with_failures_stand_out(tmp_path):
    remarks = compared(tmp_path, a=1.0, b=1.0, c=1.0, slow=2.0, bad=1.0)
    assert list(remarks)[:2] == ["slow", "bad"]
    assert remarks["slow"] == ("samples take 1.71 times as long",)
    assert remarks["bad"] == ("50 % of its attempts failed, elsewhere none",)
    assert not any(remarks[node] for node in "abc")


def test_equal_machines_do_not_stand_out(tmp_path):
    assert not any(compared(tmp_path, a=1.0, b=1.05, c=0.97).values())


def test_a_machine_with_samples_of_a_long_step_is_not_slow(tmp_path):
    study = MadeStudy(tmp_path / "study")
    for number, node in ((1, "a"), (2, "b")):
        study.record(number, f"step{number}", 50)
        runs = [attempt(i, 10**number * i, 10**number * (i + 1), record=number) for i in range(50)]
        study.ledger(f"sim-{number}", lease(0, 50 * 10**number, *runs, record=number))
        study.facts(f"sim-{number}", node)
    assert [node.slowness for node in summarize(study.plan.root).nodes] == pytest.approx([1, 1])


def test_the_facts_about_a_worker_outlive_its_heartbeat(tmp_path):
    study = MadeStudy(tmp_path / "study")
    beat = Heartbeat(
        name="sim-1", group="sim", host="h", node="node1", supervisor=(1, 1), process=(1, 1), slots=4, beat=1,
        state=WorkerState.BUSY, allocation="sim/1", started_at=5.0,
    )  # fmt: skip
    write_facts(study.session, WorkerFacts.of(beat))
    study.session.heartbeats.remove("sim-1")
    (study.plan.info / "workers" / "damaged.json").write_text("{")

    facts = read_facts(study.session)

    assert list(facts) == ["sim-1"]
    assert (facts["sim-1"].node, facts["sim-1"].allocation, facts["sim-1"].slots) == ("node1", "sim/1", 4)
    assert set(facts["sim-1"].versions) == {"maestro-celery-plugin", "maestrowf", "celery", "Python"}


# --- secrets ---


def test_values_of_env_file_are_nowhere_in_the_summary(tmp_path):
    study = MadeStudy(tmp_path / "study", ("X", "hunter2"), "1,hunter2\n2,x\n", 2)
    study.session.write_environment({"TOKEN": "hunter2", "KEY": "line one\nline two", "PIN": "987"})
    manifest = study.record(1, "sim", 2)
    study.ledger("sim-1", lease(0, 2, attempt(0, 0, 1, code=3), attempt(1, 1, 2)))
    stderr = Path(manifest.workspace, manifest.paths.of(0), f"{manifest.script}.err")
    stderr.parent.mkdir(parents=True)
    stderr.write_text("auth hunter2 failed: line two, 987, 19870\n")
    study.specification("token: xhunter2y\n")

    summary = summarize(study.plan.root)

    text = json.dumps(summary.to_json())
    assert "hunter2" not in text
    assert "line two" not in text
    assert summary.failures[0].stderr == f"auth {REDACTED} failed: {REDACTED}, {REDACTED}, 19870"
    assert summary.specification == f"token: x{REDACTED}y\n"


def test_a_secret_in_the_path_of_the_study_does_not_move_the_report(tmp_path):
    study = many_samples(tmp_path / "study", 50)
    study.session.write_environment({"DATA": str(tmp_path)})

    answer = CliRunner().invoke(main, ["report", str(study.plan.root)])

    assert answer.exit_code == 0, answer.output
    assert str(tmp_path) not in (study.plan.root / "report.html").read_text()


def test_the_processes_of_a_pool_are_their_worker(tmp_path):
    study = MadeStudy(tmp_path / "study")
    study.record(1, "sim", 2)
    for sample in range(2):
        study.ledger(f"sim-1.{90 + sample}", lease(0, 5, attempt(sample, 0, 5)))
    study.facts("sim-1", "node1", slots=0)

    summary = summarize(study.plan.root)

    assert [(node.name, node.workers, node.attempts) for node in summary.nodes] == [("node1", 1, 2)]
    assert summary.versions["celery"] == "5.5.0"
    assert [(one.label, one.slots) for one in summary.allocations] == [("sim (no allocation)", 2)]


def test_redaction_looks_into_everything():
    @dataclasses.dataclass(frozen=True)
    class Part:
        texts: tuple[str, ...]
        by_name: dict[str, str]

    assert redacted(Part(("a secret",), {"secret": "b"}), ["secret"]) == Part((f"a {REDACTED}",), {REDACTED: "b"})
    assert redacted("a secret", []) == "a secret"


# --- the sample table ---


@pytest.mark.parametrize("kind", ["csv", "tab", "npy", "fields"])
def test_rows_are_read_in_blocks_as_one_by_one(tmp_path, kind):
    path = tmp_path / f"table.{'npy' if kind in ('npy', 'fields') else kind}"
    if kind == "csv":
        path.write_text('A,B\n# a comment\n1,"x, y"\n\n2,z\n3,\n')
    elif kind == "tab":
        path.write_text("1 x\n2   y\n3 z\n")
    elif kind == "npy":
        np.save(path, np.arange(6.0).reshape(3, 2) / 3)
    else:
        np.save(path, np.array([(1, 2.5), (2, 3.5), (3, 4.5)], [("A", int), ("B", float)]))

    table = open_table(path, ("A", "B"), tmp_path)

    assert len(table) == 3
    for start in range(4):
        for stop in range(start, 4):
            rows = [list(row) for row in rows_of(table, start, stop)]
            assert rows == [list(table.row(index)) for index in range(start, stop)]


# --- the command ---


def test_the_command_writes_a_page_that_needs_no_network(tmp_path):
    study = many_samples(tmp_path / "study", 500)

    answer = CliRunner().invoke(main, ["report", str(study.plan.root)])

    assert answer.exit_code == 0, answer.output
    text = (study.plan.root / "report.html").read_text()
    assert len(text.encode()) < report_page.LIMIT_BYTES
    assert "default-src &#39;none&#39;" in text
    before_scripts = text[: text.index("<script>")]
    for sign in ('src="', "url(", "@import", '<link rel="stylesheet'):
        assert sign not in before_scripts


def test_json_needs_no_extra(tmp_path):
    study = many_samples(tmp_path / "study", 100)
    code = (
        "import sys\n"
        "for name in ('altair', 'jinja2', 'vl_convert'): sys.modules[name] = None\n"
        "from maestro_celery_plugin.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "report", str(study.plan.root)]

    answer = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    found = json.loads(answer.stdout)
    assert found["steps"][0]["name"] == "simulate"
    assert 0 < found["utilisation"] < 1

    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "pip install 'maestro-celery-plugin[report]'" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (study.plan.root / "report.html").exists()


def test_a_directory_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(StudyError):
        summarize(tmp_path)


def test_a_study_of_the_first_release_has_a_report(tmp_path):
    from releases import RELEASES, restore

    for release in RELEASES:
        summary = summarize(restore(release, tmp_path / release))
        assert summary.timeline
        assert report_page.page(summary)


def test_a_page_of_a_thousand_records_machines_and_allocations_is_small(tmp_path):
    study = MadeStudy(tmp_path / "study")
    for number in range(1, 401):
        study.record(number, f"step{number}", 2, params=f"P:{number}")
        study.ledger(
            f"sim-{number}-1", lease(number, number + 2, attempt(0, number, number + 1, code=number % 3, record=number))
        )
        study.facts(f"sim-{number}-1", f"node{number}", f"sim/{number}")
        study.allocation(number, began_at=float(number), ended_at=number + 9.0)

    assert len(report_page.page(summarize(study.plan.root)).encode()) < report_page.LIMIT_BYTES


def test_a_report_into_a_directory_that_does_not_exist_has_a_message(tmp_path):
    study = many_samples(tmp_path / "study", 50)

    answer = CliRunner().invoke(main, ["report", str(study.plan.root), "-o", str(tmp_path / "nowhere" / "r.html")])

    assert answer.exit_code == 1
    assert f"there is no directory '{tmp_path / 'nowhere'}'; create it first." in answer.output


def test_a_specification_in_place_of_a_study_has_a_message(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("description: {}")

    answer = CliRunner().invoke(main, ["status", str(path)])

    assert answer.exit_code == 1
    assert f"'{path}' is a file, and not the directory of a study; give the directory that `maestro run` has" in answer.output
