"""The parts of the display of `-fg`: steps as groups, lines that fit, log lines, and what reading may cost."""

from __future__ import annotations

import io
import logging
import os
import sys

import pytest
from filelock import FileLock
from report_studies import MadeStudy, attempt, many_records
from rich.console import Console

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.maestro.foreground_log import ForegroundLog
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.report.live.progress_display import ProgressDisplay
from maestro_celery_plugin.report.live.progress_view import end_view, progress_view
from maestro_celery_plugin.report.live.step_groups import group_steps
from maestro_celery_plugin.report.live.warning_lines import WarningLines
from maestro_celery_plugin.report.reader import StatusReader


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of 200 step records, which the tests only read."""
    made = many_records(tmp_path_factory.mktemp("many") / "study")
    with FileLock(made.plan.conductor_lock):
        yield made


def shown(view, width: int, height: int = 24) -> list[str]:
    """Return the lines of a view in a terminal."""
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(view(console), crop=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


# --- steps as groups ---


def test_a_step_has_the_sum_of_its_step_records_and_of_those_not_submitted_yet(study):
    """Given steps of 66 step records, then samples are added up, and 20 are expected of a record before its submission."""
    groups = group_steps(
        StatusReader(study.plan.root).read().steps, {"make": 20, "simulate": 20, "analyse": 20, "collect": 1}
    )
    assert [(group.step, len(group.records), group.whole.state) for group in groups] == [
        ("make", 66, "FINISHED"), ("simulate", 66, "RUNNING"), ("analyse", 66, "INITIALIZED"), ("collect", 2, "INITIALIZED")
    ]  # fmt: skip
    assert [group.whole.samples for group in groups] == [
        Counts(total=1320, finished=1320, failed=0, running=0, pending=0),
        Counts(total=1320, finished=593, failed=7, running=20, pending=700),
        Counts(total=1320, finished=0, failed=0, running=0, pending=1320),
        Counts(total=2, finished=0, failed=0, running=0, pending=2),
    ]


def test_a_native_step_counts_its_step_records(tmp_path):
    study = MadeStudy(tmp_path / "study")
    (study.plan.root / "status.csv").write_text(
        "h\n"
        + "\n".join(
            f"n_X.{i},7{i},n/X.{i},{state},-,-,-,-,-,0,X:{i}"
            for i, state in enumerate(("FINISHED", "FAILED", "RUNNING", "INITIALIZED"))
        )
    )
    with FileLock(study.plan.conductor_lock):
        steps = StatusReader(study.plan.root).read().steps
    group = next(group for group in group_steps(steps, {}) if group.step == "n")
    assert group.whole.samples == Counts(total=4, finished=1, failed=1, running=1, pending=1)
    assert group.whole.state == "RUNNING"


def test_the_rate_of_a_step_is_that_of_its_running_step_records(tmp_path):
    """Given two step records that run, with one and two samples per second, then the step has three, and the time left."""
    study = MadeStudy(tmp_path / "study", ("X",), "1\n" * 100, 100)
    rows = []
    for number, seconds in ((1, 1.0), (2, 0.5)):
        study.record(number, "sim", 100, state="RUNNING", params=f"G:{number}")
        for sample in range(40):
            rows += attempt(sample, sample * seconds, (sample + 1) * seconds, record=number, slot=number)
    study.ledger("w-1", rows)
    study.ledger("coordinator", [(Kind.SENT, 0, 0, 1, 1, 0, 100, 0.0)])
    with FileLock(study.plan.conductor_lock):
        whole = group_steps(StatusReader(study.plan.root).read().steps, {"sim": 100})[0].whole
    assert whole.rate == pytest.approx(3.0, rel=0.05)
    assert whole.time_left_s == pytest.approx(120 / 3.0, rel=0.05)


# --- the view ---


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [5, 8, 24])
def test_each_line_fits_and_each_step_has_its_state(study, width, height):
    """Given any size, then no line is wider than the terminal, and the view is lower than it."""
    reader = StatusReader(study.plan.root)
    status = reader.read()
    lines = shown(lambda console: progress_view(status, reader, console, 90), width, height)
    assert all(len(line) <= width for line in lines), lines
    assert len(lines) < height
    assert lines[0] == "sweep  RUNNING  1 min 30 s"
    assert any("RUNNING, 7 failed" in line for line in lines[:4])


def test_the_end_says_what_failed_and_what_to_do(study):
    reader = StatusReader(study.plan.root)
    status = reader.read(is_over=True)
    text = "\n".join(shown(lambda console: end_view(status, reader, console, 90, advises=True), 80))
    assert text.startswith("sweep  INTERRUPTED")
    assert "simulate_GAIN.0;TEMPERATURE.300  sample 3  exit code 3, and 6 more" in text
    assert f"maestro-celery resume {study.plan.root}" in text
    text = "\n".join(shown(lambda console: end_view(status, reader, console, 90, advises=False), 80))
    assert f"maestro-celery resume {study.plan.root}" not in text


# --- what it costs ---


class SlowReader:
    """A reader whose look at a large study takes five seconds."""

    def __init__(self, reader: StatusReader) -> None:
        self._reader, self.plan, self.looks = reader, reader.plan, 0

    def read(self, **options):
        self.looks += 1
        clock.sleep(5)
        return self._reader.read(**options)

    def failure_kinds(self, limit):
        return self._reader.failure_kinds(limit)


@pytest.mark.parametrize("fails", [False, True])
def test_reading_takes_a_tenth_of_the_time(study, monkeypatch, fails):
    """Given a look that takes 5 s, then the display waits for 45 s before the next one, also if the look fails."""
    now, waits = [0.0], []

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(clock, "sleep", sleep)
    reader = SlowReader(StatusReader(study.plan.root))
    if fails:
        monkeypatch.setattr(reader._reader, "read", lambda **_: (_ for _ in ()).throw(StudyError("unreadable")))
    display = ProgressDisplay(reader, Console(file=io.StringIO()))

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            display._ended.set()

    monkeypatch.setattr(display._ended, "wait", wait)
    display._run()
    assert waits == [45, 45, 45]


# --- log lines ---


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch, tmp_path):
    """The log of `maestro run` in a terminal, which the display has taken."""
    stream = TerminalStream()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    other = logging.StreamHandler(stream)  # of a logger whose lines reach the root as well
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    monkeypatch.setattr(logging.getLogger("elsewhere"), "handlers", [other])
    monkeypatch.setattr(OPTIONS, "is_ensemble", True)
    taken = ForegroundLog()
    yield taken, stream, handler, tmp_path / "sweep.txt"
    taken.close()


def test_warnings_reach_the_terminal_and_all_lines_a_file(log):
    taken, stream, _, file = log
    logger = logging.getLogger("maestrowf.maestro")
    logger.info("Loading")
    logger.warning("Early")
    logger.warning("WARNING Logging Level -- Enabled")
    above = []
    taken.keep_in(file)
    taken.show_with(above.append)
    logger.info("Polling")
    logger.error("Broken")
    taken.show_with(None)
    logger.warning("Late")
    assert stream.getvalue() == "[WARNING] Early\n[WARNING] Late\n"
    assert above == ["[ERROR] Broken"]
    words = [line.partition("] ")[2] for line in file.read_text().splitlines()]
    assert words == ["Loading", "Early", "WARNING Logging Level -- Enabled", "Polling", "Broken", "Late"]


def test_a_study_without_an_ensemble_gets_its_lines_back(log):
    """Given lines before it is known that there is no ensemble, then the terminal gets all of them in their order."""
    taken, stream, handler, _ = log
    OPTIONS.is_ensemble = False
    logging.getLogger("maestrowf.maestro").info("First")
    logging.getLogger("maestrowf.maestro").warning("Second")
    assert stream.getvalue() == ""
    taken.give_back()
    logging.getLogger("maestrowf.maestro").info("Third")
    assert stream.getvalue() == "[INFO] First\n[WARNING] Second\n[INFO] Third\n"
    assert handler in logging.root.handlers
    assert taken not in logging.root.handlers


def test_warnings_of_a_conductor_elsewhere_are_followed(tmp_path):
    """Given a log with old lines, then only new warnings and errors appear, with their tracebacks, when they are whole."""
    log = tmp_path / "resumed.txt"
    log.write_text("[2026-01-01 10:00:00,000: ERROR] old\n")
    lines = WarningLines(log)
    with log.open("a") as file:
        file.write(
            "[2026-01-01 10:00:01,000: INFO] fine\nmore\n[2026-01-01 10:00:01,000: WARNING] WARNING Logging Level -- Enabled\n"
        )
        file.write(
            "[2026-01-01 10:00:02,000: ERROR] bad\nTraceback\n[2026-01-01 10:00:03,000: INFO] fine\n[2026-01-01 10:00:04,000: WARN"
        )
    assert list(lines.read()) == ["[2026-01-01 10:00:02,000: ERROR] bad", "Traceback"]
    with log.open("a") as file:
        file.write("ING] half\n")
    assert list(lines.read()) == ["[2026-01-01 10:00:04,000: WARNING] half"]
    assert list(WarningLines(tmp_path / "missing").read()) == []


def test_the_display_leaves_the_output_of_the_process_as_it_was(study, monkeypatch):
    """Given an exception in the conductor, then the display ends, and the output of the process is the terminal again."""
    terminal = TerminalStream()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(width=80, height=24, force_terminal=True)
    with pytest.raises(ValueError, match="broken"), ProgressDisplay(StatusReader(study.plan.root), console):
        raise ValueError("broken")
    assert sys.stdout is terminal
    assert terminal.getvalue().rfind("\x1b[?25l") < terminal.getvalue().rfind("\x1b[?25h")
    assert os.environ["TERM"] == "xterm"
