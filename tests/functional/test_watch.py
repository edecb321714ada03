"""`status --watch` in a terminal: grouped step records, keys, sizes, and a terminal that is whole afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest
from filelock import FileLock
from report_studies import MadeStudy, many_records
from support import BIN, PATIENCE_S, wait_for
from terminal import Terminal

from maestro_celery_plugin.report.live.keyboard import decoded


class Watch:
    """A study of 200 step records, and the terminals that show it."""

    def __init__(self, study: MadeStudy) -> None:
        self.study = study
        self.terminals: list[Terminal] = []
        self.conductor = FileLock(study.plan.conductor_lock)
        self.conductor.acquire()

    def open(self, *options: str, columns: int = 80, lines: int = 24, **variables: str) -> Terminal:
        command = [str(BIN / "maestro-celery"), "status", "--watch", *options, str(self.study.plan.root)]
        terminal = Terminal(command, dict(os.environ) | variables, columns, lines)
        self.terminals.append(terminal)
        return terminal


@pytest.fixture
def watch(tmp_path):
    made = Watch(many_records(tmp_path / "study"))
    yield made
    for terminal in made.terminals:
        terminal.close()
    made.conductor.release()


def await_selected(terminal: Terminal, text: str) -> str:
    """Wait until the line that is marked as selected, which is shown in reverse, has a text; return the line.

    What is drawn after a key may arrive in parts: without a selected line, or with an old one below a new header.
    """
    found: list[str] = []

    def is_shown(_: str) -> bool:
        lines = [(number, line) for number, line in enumerate(terminal.lines) if line.startswith(">")]
        found[:] = [line for number, line in lines if text in line and terminal.screen.buffer[number][0].reverse]
        return len(lines) == len(found) == 1

    terminal.await_screen(is_shown, f"the selected line has {text!r}")
    return found[0]


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 24), (200, 60), (80, 8)])
def test_200_step_records_are_grouped_and_each_has_one_line_with_its_state(watch, columns, lines):
    """Given a study of 200 step records, then steps with failures are first, and below them the records that failed."""
    terminal = watch.open(columns=columns, lines=lines)
    screen = terminal.await_text("q quit")

    assert all(len(line) <= columns for line in terminal.lines)
    assert len(terminal.lines) == lines
    rows = [line for line in terminal.lines if re.search(r"RUNNING, 7|FINISHED|INITIALIZED  |INITIALIZED$", line)]
    selected = await_selected(terminal, "RUNNING, 7 failed")
    assert "simulate" in selected or "x66" in selected
    assert "FINISHED, 1 failed" in terminal.lines[terminal.lines.index(selected) + 1]
    assert len(rows) >= 2
    if columns == 80 and lines == 24:
        assert re.search(r"^ \+analyse x66 +INITIALIZED +\.+ +0/66 ", screen, re.MULTILINE), screen
        assert re.search(r"^    GAIN\.0;TEMPERATURE\.300 +FINISHED, 1 failed +━+x +19/20 ", screen, re.MULTILINE), (
            screen
        )
        assert screen.index("x66") < screen.index("analyse") < screen.index("+make")
        assert "allocation sim/1  job 1001  RUNNING" in screen


def test_keys_open_the_stderr_of_a_failed_sample_and_lead_back(watch):
    """Given the rows, when the user presses enter on a step record, then its failed samples, and then their stderr."""
    terminal = watch.open()
    terminal.await_text("q quit")
    terminal.type("\x1b[B")
    await_selected(terminal, "GAIN.0;")
    terminal.type("\r")
    terminal.await_text("1 failed sample of simulate_GAIN.0;TEMPERATURE.300")
    await_selected(terminal, "sample 3  exit code 3  X=0.15  NAME=n3")
    terminal.type("\r")
    terminal.await_text("iteration 99 of 0")
    screen = terminal.await_text("no \\x1b[31mconvergence")  # control sequences of a sample have no effect
    assert "iteration 0 of 0" not in screen
    terminal.type("\x1b[5~")
    terminal.await_screen(lambda screen: "iteration 99 of 0" not in screen, "the page before")
    terminal.type("\x1b[H")
    assert ".err" in terminal.await_text("iteration 0 of 0")
    terminal.type("o")
    terminal.await_text("(it is empty)")
    terminal.type("\x1b")
    terminal.await_text("1 failed sample of")
    terminal.type("\x1b")
    terminal.await_text("step records")
    await_selected(terminal, "GAIN.0;")
    terminal.type("F")
    terminal.await_text("7 failed samples")


def test_keys_sort_filter_open_and_close(watch):
    """Given the rows, then s changes the order, / filters, enter opens and closes a step, and ? lists the keys."""
    terminal = watch.open()
    terminal.await_text("order: attention")
    terminal.type("s")
    terminal.await_text("order: study")
    terminal.await_screen(lambda screen: -1 < screen.find("+make") < screen.find("simulate x66"), "the order of the study")
    terminal.type("/gain=65")
    terminal.await_text("filter: gain=65")
    record = re.compile(r"^    GAIN\.65;TEMPERATURE\.365 +PENDING", re.MULTILINE)
    terminal.await_screen(lambda screen: record.search(screen) and "collect" not in screen, "the rows of the filter")
    terminal.type("\r\x1b")
    terminal.await_text("+collect x2")
    terminal.type("\x1b[F")
    await_selected(terminal, "collect")
    terminal.type("\r")
    terminal.await_text("-collect x2")
    terminal.await_text("    GAIN.1.TEMPERATURE.301")
    await_selected(terminal, "-collect")
    terminal.type("\r")
    terminal.await_text("+collect x2")
    terminal.type("?")
    terminal.await_text("next order:")
    terminal.type("\x1b")
    terminal.await_text("order: study")
    terminal.type("w")
    terminal.await_text("Allocations and workers")


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM, signal.SIGINT])
def test_the_terminal_is_whole_after_the_watch(watch, end):
    """Given a watch, when the user or a signal ends it, then settings, cursor and screen of the terminal are as before."""
    terminal = watch.open()
    terminal.await_text("q quit")
    assert not terminal.is_whole
    if isinstance(end, str):
        terminal.type(end)
    else:
        terminal.interrupt(end)
    assert terminal.await_end() == (143 if end == signal.SIGTERM else 4)
    assert terminal.is_whole
    assert "Traceback" not in terminal.text
    if end == "q":
        assert "200 step records" in terminal.text  # the last state stays


def test_the_terminal_is_whole_while_the_watch_is_stopped(watch):
    """Given Ctrl-Z, then the terminal is as before until the user continues the watch, which then takes it again."""
    terminal = watch.open()
    terminal.await_text("q quit")
    os.kill(terminal.process.pid, signal.SIGTSTP)
    wait_for(lambda: os.waitpid(terminal.process.pid, os.WUNTRACED | os.WNOHANG)[0], "the stop of the watch")
    assert terminal.is_whole
    terminal.process.send_signal(signal.SIGCONT)
    terminal.await_text("q quit")
    terminal.type("q")
    assert terminal.await_end() == 4
    assert terminal.is_whole


def test_the_screen_follows_the_size_of_the_terminal(watch):
    terminal = watch.open(columns=100)
    terminal.await_text("q quit")
    terminal.resize(40, 12)
    terminal.await_screen(
        lambda screen: "RUNNING, 7 failed" in screen and screen.splitlines()[-1].startswith("q quit"), "40 columns"
    )
    assert "FINISHED, 1 failed" in terminal.text
    terminal.resize(130, 30)
    terminal.await_text("time left")


def test_the_watch_ends_with_the_study_unless_a_key_was_pressed(watch):
    """Given two watches of a study, when it ends, then the one ends, and the other stays until q."""
    quiet, used = watch.open(), watch.open()
    quiet.await_text("q quit")
    used.await_text("q quit")
    used.type("s")
    used.await_text("order: study")
    watch.conductor.release()
    assert quiet.await_end() == 3
    assert "INTERRUPTED" in quiet.text
    assert "maestro-celery resume" in quiet.text
    assert quiet.is_whole
    used.await_text("sweep  INTERRUPTED")
    used.type("q")
    assert used.await_end() == 3


def test_a_study_that_has_ended_is_shown_with_stay_only(watch):
    watch.conductor.release()
    terminal = watch.open()
    assert terminal.await_end() == 3
    assert b"\x1b[?1049h" not in terminal.raw
    terminal = watch.open("--stay")
    terminal.await_text("q quit")
    terminal.type("q")
    assert terminal.await_end() == 3


def test_a_pipe_gets_plain_text_without_keys(watch):
    watch.conductor.release()
    command = [str(BIN / "maestro-celery"), "status", "--watch", str(watch.study.plan.root)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, stdin=subprocess.DEVNULL)
    assert answer.returncode == 3
    assert "\x1b" not in answer.stdout
    assert "200 step records" in answer.stdout


def test_a_terminal_without_utf8_shows_what_it_can(watch):
    """Given ``LC_ALL=C``, then other characters are question marks, and bars have other signs; before, this was a traceback."""
    terminal = watch.open(columns=60, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    screen = terminal.await_text("q quit")
    assert re.search(r"RUNNING, 7 failed", screen)
    assert "?" in screen
    terminal.type("q")
    assert terminal.await_end() == 4


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1bOB", ["up", "down"]),
        ("\x1b", ["escape"]),
        ("\x1b[15~x", ["x"]),
        ("\x1b[1;5Cy", ["y"]),
        ("ä \r", ["ä", "space", "enter"]),
        ("\x00\x01", []),
    ],
)
def test_what_a_terminal_sends_is_decoded(text, keys):
    assert decoded(text) == keys
