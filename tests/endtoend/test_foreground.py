"""`maestro run -fg` and `maestro-celery resume -fg` in a terminal: a display of the progress in place of the log."""

from __future__ import annotations

import contextlib
import re
import textwrap
from pathlib import Path

import pytest
from support import BIN, PATIENCE_S, Study, kill
from terminal import Terminal

SPEC = """
    description: {name: sweep, description: d}
    study:
      - name: simulate
        description: d
        run:
          cmd: |
            until [ -e $(SPECROOT)/go ] || [ $(X) -lt 3 ]; do sleep 0.05; done
            echo "no convergence at $(G)" >&2; [ $(X) -ne 2 ]
      - name: collect
        description: d
        run: {cmd: "exit 0", depends: [simulate_*]}
    global.parameters: {G: {values: [1, 2], label: G.%%}}
    merlin:
      resources: {workers: {sim: {args: --concurrency 4, steps: [all]}}}
      samples: {generate: {cmd: "printf '1\\n2\\n3\\n4\\n' > $(MERLIN_INFO)/s.csv"}, file: $(MERLIN_INFO)/s.csv, column_labels: [X]}
"""


class Foreground:
    """A study in the foreground of a terminal; its samples with X > 2 wait for `go`."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory, self.environment = directory, environment
        self.study = Study(directory / "study", environment)
        self.terminals: list[Terminal] = []
        (directory / "sweep.yaml").write_text(textwrap.dedent(SPEC))

    def open(self, *words: str, columns: int = 80, lines: int = 24) -> Terminal:
        return self.open_command([str(BIN / words[0]), *words[1:]], columns, lines)

    def open_command(self, command: list[str], columns: int = 80, lines: int = 24) -> Terminal:
        self.terminals.append(Terminal(command, self.environment, columns, lines, self.directory))
        return self.terminals[-1]

    def run(self, *options: str, before: tuple[str, ...] = (), columns: int = 80, lines: int = 24) -> Terminal:
        words = ("maestro", *before, "run", "-fg", "-s", "1", "-o", str(self.study.path), *options, "sweep.yaml")
        return self.open(*words, columns=columns, lines=lines)

    def go(self) -> None:
        (self.directory / "go").touch()

    @property
    def output(self) -> str:
        return (self.study.path / "sweep.txt").read_text()


@pytest.fixture
def foreground(tmp_path, environment):
    made = Foreground(tmp_path, environment)
    yield made
    for terminal in made.terminals:
        terminal.close()
    with contextlib.suppress(FileNotFoundError):
        kill(*made.study.server(), *made.study.processes())


def test_a_terminal_shows_the_progress_and_the_end_with_what_to_do(foreground):
    """Given a terminal, when a study runs in the foreground, then it shows one line for each step and no log line.

    The question of Maestro comes before. At the end, the last state stays, with the failures and the next commands.
    """
    terminal = foreground.run()
    terminal.await_text("Would you like to launch the study? [yn]")
    terminal.type("y\n")
    row = r"^simulate x2 RUNNING, 2 failed +━+x+\.+ +2/8 +[2-4]"
    screen = terminal.await_screen(lambda screen: re.search(row, screen, re.MULTILINE), "the row of the first step")

    assert re.search(r"^sweep  RUNNING  ", screen, re.MULTILINE)
    assert re.search(r"^collect +INITIALIZED .* 0/1 ", screen, re.MULTILINE), screen
    assert "1 worker: 1 busy" in screen
    foreground.go()
    assert terminal.await_end() == 1
    end = terminal.text
    assert re.search(r"^sweep  FINISHED, 2 failed", end, re.MULTILINE), end
    assert re.search(r"^simulate x2 FINISHED, 2 failed +━+x+ +6/8", end, re.MULTILINE), end
    assert "no convergence" in end
    assert "  maestro-celery resume --failed /" in end
    assert end.count("simulate x2") == 1
    assert "INFO" not in terminal.raw.decode()
    assert terminal.is_whole


def test_the_log_lines_are_in_a_file_and_warnings_on_the_terminal(foreground):
    """Given a display, then each log line is in the file of a conductor in the background, and a warning above the bars."""
    spec = foreground.directory / "sweep.yaml"
    spec.write_text(spec.read_text().replace("[ $(X) -ne 2 ]", ': "$(TYPO)"; [ $(X) -ne 2 ]'))
    terminal = foreground.run("-y")
    foreground.go()
    terminal.await_end()

    text = terminal.raw.decode()
    assert text.count("$(TYPO)") == 1
    assert text.index("$(TYPO)") < text.index("simulate x2")
    assert "Logging Level -- Enabled" not in text
    for line in (
        "INFO Logging Level -- Enabled",
        "WARNING] sweep.yaml: ",
        "Running Maestro Conductor in the foreground.",
        "is complete",
    ):
        assert line in foreground.output
    log = (foreground.study.path / "logs" / "sweep.log").read_text()
    assert "Running Maestro Conductor in the foreground." in log


@pytest.mark.parametrize("level", ["1", "4"])
def test_the_debug_level_brings_the_log_back(foreground, level):
    """Given ``-d 1``, then the terminal shows the log and no display; any other level keeps the display."""
    foreground.go()
    terminal = foreground.run("-y", before=("-d", level))
    terminal.await_end()
    assert ("Running Maestro Conductor" in terminal.raw.decode()) is (level == "1")
    assert ("simulate x2" in terminal.raw.decode()) is (level != "1")


def test_a_pipe_gets_the_log(foreground):
    """Given no terminal, then the output is that of Maestro, and there is no further file."""
    foreground.go()
    study = foreground.study
    answer = study.command(
        "maestro", "run", "-fg", "-y", "-s", "1", "-o", str(study.path), str(foreground.directory / "sweep.yaml")
    )
    assert "Running Maestro Conductor in the foreground." in answer.stderr
    assert answer.stdout == ""
    assert "2 samples have failed; `maestro-celery failed" in answer.stderr
    assert not (study.path / "sweep.txt").exists()


def test_ctrl_c_and_resume_leave_the_terminal_whole(foreground):
    """Given a display, when the user presses Ctrl-C, then the last state stays, and `resume -fg` shows a display, too."""
    terminal = foreground.run("-y")
    terminal.await_text("RUNNING, 2 failed")
    terminal.type("\x03")
    assert terminal.await_end() == 130
    assert "sweep  INTERRUPTED" in terminal.text
    assert "maestro: interrupted. The study has stopped" in terminal.text
    assert "Traceback" not in terminal.raw.decode()
    assert terminal.is_whole

    terminal = foreground.open("maestro-celery", "resume", "-fg", "-s", "1", str(foreground.study.path))
    screen = terminal.await_text("RUNNING, 2 failed")
    assert "This will run:" in screen
    terminal.type("\x03")
    assert terminal.await_end() == 4
    assert "The study goes on; `maestro-celery status --watch" in terminal.text
    assert "To continue the study" not in terminal.text
    assert terminal.is_whole

    foreground.go()
    foreground.study.await_end()
    terminal = foreground.open("maestro-celery", "resume", "-fg", "-s", "1", "--failed", str(foreground.study.path))
    assert terminal.await_end() == 1
    assert "sweep  FINISHED, 2 failed" in terminal.text


def test_a_closed_terminal_does_not_end_the_study(foreground):
    """Given a user who ignores SIGHUP, when the terminal is closed, then the study finishes, and its log has all lines."""
    command = f"trap '' HUP; exec {BIN / 'maestro'} run -fg -y -s 1 -o {foreground.study.path} sweep.yaml"
    terminal = foreground.open_command(["/bin/sh", "-c", command])
    terminal.await_text("RUNNING, 2 failed")
    terminal.hang_up()
    foreground.go()
    assert terminal.process.wait(PATIENCE_S) == 1
    assert set(foreground.study.states().values()) == {"FINISHED"}
    assert "is complete" in foreground.output


@pytest.mark.parametrize("columns", [40, 200])
def test_each_line_fits_into_a_terminal_that_changes_its_width(foreground, columns):
    """Given a display, when the terminal becomes narrower or wider, then each step has one line with its state."""
    terminal = foreground.run("-y", columns=100)
    terminal.await_text("RUNNING, 2 failed")
    terminal.resize(columns, 24)

    def is_redrawn(screen: str) -> bool:
        lines = [line for line in screen.splitlines() if "simulate x2" in line]
        has_bar = "━" in screen and "pending" in screen
        return (
            len(lines) == 1
            and "RUNNING, 2 failed" in lines[0]
            and (has_bar if columns == 200 else "4/8" in lines[0] or "2/8" in lines[0])
        )

    terminal.await_screen(is_redrawn, "the display in the new width")
    foreground.go()
    terminal.await_end()
    assert terminal.text.count("simulate x2") == 1
    assert terminal.is_whole


QUIET = """
    description: {name: quiet, description: d}
    study:
      - {name: sim, description: d, run: {cmd: "echo $(X)"}}
    merlin:
      resources: {workers: {sim: {args: --concurrency 1}}}
      samples: {generate: {cmd: "printf '1\\\\n2 %s\\\\n' '#3' > $(MERLIN_INFO)/s.csv"}, file: $(MERLIN_INFO)/s.csv, column_labels: [X]}
"""


@pytest.mark.parametrize("foreground", [True, False], ids=["in the foreground", "in the background"])
def test_a_quiet_launch_prints_warnings_and_nothing_else(run, foreground):
    study = run(QUIET, "-s", "1", "--quiet", foreground=foreground)

    assert study.code == 0
    (line,) = study.output.splitlines()
    assert "WARNING" in line and "s.csv: line 2 has a '#' within a row" in line
    if not foreground:
        study.await_end()
