"""The completion of command lines: what is completed, what it imports, and the scripts in real shells."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from support import BIN, ROOT, needed

from maestro_celery_plugin.cli import COMMANDS, _summary

# Prints the declaration of each command: its parameters, and those of its own commands.
DECLARATIONS = """
import json, sys
import click
from maestro_celery_plugin.cli import COMMANDS, main

def parameters(command):
    own = [[type(p).__name__, p.name, p.opts, repr(p.type), p.nargs, p.multiple if hasattr(p, "multiple") else 0] for p in command.params]
    inner = {name: parameters(one) for name, one in getattr(command, "commands", {}).items()}
    return [own, inner]

context = click.Context(main, resilient_parsing=sys.argv[1] == "completes")
found = {name: parameters(main.get_command(context, name)) for name in COMMANDS}
print(json.dumps([found, sorted(sys.modules)]))
"""
STATUS = (
    "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params\n"
)


@pytest.fixture
def place(tmp_path):
    """A directory with studies, the newest one first in their names, and other files."""
    for age, name in enumerate(["study_a", "study_b", "with blank"]):
        root = tmp_path / name
        (root / "merlin_info" / "session" / "groups").mkdir(parents=True)
        (root / "merlin_info" / "session" / "groups" / "workers.json").write_text("{}")
        (root / "batch.info").write_text("")
        os.utime(root / "batch.info", (1000 - age, 1000 - age))
        rows = [f"{row},1,{step}/x,RUNNING,-,-,-,-,-,0," for step, row in (("sim", "sim_X.1"), ("post", "post"))]
        (root / "status.csv").write_text(STATUS + "\n".join(rows) + "\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "sweep.yaml").write_text(
        "study: [{name: first}, {name: second}]\nmerlin: {resources: {workers: {w: {}}}}\n"
    )
    return tmp_path


def completed(place, *words, shell="bash"):
    """Return what the program answers to a shell, by kind, and the modules that it has imported."""
    program = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from maestro_celery_plugin.cli import main\n"
        "main(prog_name='maestro-celery')\n"
    )
    environment = {
        **os.environ,
        "COMP_WORDS": " ".join(["maestro-celery", *words]),
        "COMP_CWORD": str(len(words)),
        "_MAESTRO_CELERY_COMPLETE": f"{shell}_complete",
    }
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=place, capture_output=True, text=True, check=True
    )
    return answer.stdout.split("\n")[:-1], json.loads(answer.stderr)


@pytest.mark.parametrize(
    ("words", "items"),
    [
        (["st"], ["plain,status", "plain,stop-workers"]),
        (["--v"], ["plain,--version"]),
        (["wait", "--t"], ["plain,--timeout"]),
        (["session", "s"], ["plain,show", "plain,stop"]),
        (["config", "unset", "--h"], ["plain,--help"]),
        (["completion", ""], ["plain,bash", "plain,zsh", "plain,fish"]),
        (["example", "iter"], ["plain,iterative_demo"]),
        (["status", "study"], ["plain,study_a", "plain,study_b"]),
        (["wait", "study_a", "study_b"], ["plain,study_b"]),
        (["status", "wi"], ["plain,'with blank'"]),
        (["status", "PLACE/study_b"], ["plain,PLACE/study_b"]),
        (["status", "res"], ["file,res"]),
        (["status", "no/such/x"], ["file,no/such/x"]),
        (["validate", "sw"], ["file,sw"]),
        (["samples", "study_a", "--step", ""], ["plain,sim", "plain,post", "plain,sim_X.1"]),
        (["samples", "study_a", "--step", "sim_"], ["plain,sim_X.1"]),
        (["cancel", "--step", "sim", "study_a", "--step", "p"], ["plain,post"]),
        (["samples", "study_a", "--step", "=", "po"], ["plain,post"]),
        (["samples", "study_a", "--step", "="], ["plain,sim", "plain,post", "plain,sim_X.1"]),
        (["purge", "sweep.yaml", "--step", "f"], ["plain,first"]),
        (["stop-workers", "study_a", "--group", ""], ["plain,workers"]),
        (["workers", "sweep.yaml", "--group", ""], ["plain,w"]),
        (["samples", "results", "--step", ""], []),
        (["samples", "--step", ""], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_commands_options_studies_steps_and_groups_are_completed(place, words, items):
    """Given words of a command line, then the last one is completed, and neither Celery nor NumPy nor Maestro is imported."""
    found, modules = completed(place, *(word.replace("PLACE", str(place)) for word in words))
    assert [item.replace(str(place), "PLACE") for item in found if item] == items
    heavy = {"celery", "kombu", "numpy", "maestrowf", "msgspec", "rich", "jsonschema", "pluggy"}
    assert not heavy.intersection(modules)
    # A quarter of what `maestro-celery status` itself imports.
    assert len(modules) < 260 + (50 if "sweep.yaml" in words else 0)


def test_commands_have_their_purpose_beside_them(place):
    lines, _ = completed(place, "exp", shell="zsh")
    assert lines == ["plain", "explain", "why step records do not run or have ended"]
    assert all(map(_summary, COMMANDS))


def test_a_large_study_completes_the_names_of_its_steps_only(place):
    rows = [f"sim_X.{number},1,sim/X.{number},RUNNING,-,-,-,-,-,0," for number in range(100)]
    (place / "study_a" / "status.csv").write_text(STATUS + "\n".join(rows) + "\n")
    assert completed(place, "samples", "study_a", "--step", "s")[0] == ["plain,sim"]


def test_the_declaration_of_each_command_is_that_of_its_module():
    """Given stand-ins for what commands call, then each command has the parameters that it has without them."""
    answers = []
    for mode in ("runs", "completes"):
        output = subprocess.run(
            [sys.executable, "-c", DECLARATIONS, mode], check=True, capture_output=True, text=True
        ).stdout
        answers.append(json.loads(re.sub(r" at 0x[0-9a-f]+", "", output)))
    (real, real_modules), (declared, modules) = answers
    assert declared == real
    assert list(declared) == list(COMMANDS)
    assert "numpy" in real_modules
    assert "numpy" not in modules


# --- real shells ---------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path):
    path = f"{BIN}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def script(shell):
    return subprocess.run(
        [BIN / "maestro-celery", "completion", shell], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_valid_in_its_shell(shell, tmp_path):
    path = tmp_path / "script"
    path.write_text(script(shell))
    answer = subprocess.run([needed(shell), "-n", str(path)], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


class Terminal:
    """A shell in a terminal."""

    def __init__(self, command, environment, place):
        self._leader, follower = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            cwd=place,
            start_new_session=True,
        )
        os.close(follower)
        self.shown = ""

    def type(self, text):
        os.write(self._leader, text.encode())

    def await_text(self, pattern, timeout_s=60.0):
        """Wait until the terminal shows a text that was not awaited before."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.shown)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.shown!r}"
            if select.select([self._leader], [], [], left)[0]:
                self.shown += os.read(self._leader, 65536).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found[0]

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._leader)


@pytest.fixture
def terminal(place, environment):
    """Start a shell in a terminal, in which the completion is loaded."""
    opened = []

    def start(shell):
        words = {"bash": ["--norc", "-i"], "zsh": ["-f", "-i"]}[shell]
        one = Terminal([needed(shell), *words], environment, place)
        opened.append(one)
        begin = (
            "autoload -Uz compinit; compinit -u -D; " if shell == "zsh" else "bind 'set enable-bracketed-paste off'; "
        )
        one.type(f"PS1='> '; {begin}eval \"$(maestro-celery completion {shell})\"; echo rea''dy\n")
        one.await_text("ready\r?\n")
        # The shell reads keys now. Those before are lines to it, and a Tab in them completes nothing.
        one.await_text("\x1b\\[\\?2004h" if shell == "zsh" else "> ")
        return one

    yield start
    for one in opened:
        one.close()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_in_a_terminal_completes_the_line(terminal, shell):
    """Given the Tab key after a command, an option, a study and a step, then the shell inserts what fits."""
    one = terminal(shell)
    one.type("echo maestro-celery; maestro-celery expl\t")
    one.await_text("explain ")
    one.type("study_b\t")
    one.await_text("study_b ")
    one.type("\x15maestro-celery samples study_a --st\t")
    one.await_text("--step ")
    one.type("po\t")
    one.await_text("post ")
    one.type("\x15maestro-celery status wi\t")
    one.await_text(r"with\\ blank|'with blank'")
    one.type("\x15maestro-celery status res\t")
    one.await_text("results/")


def test_bash_completes_the_value_after_an_equals_sign(terminal):
    one = terminal("bash")
    one.type("maestro-celery samples study_a --step=po\t")
    one.await_text("--step=post ")


def test_fish_completes_the_line(place, environment):
    def completed(line):
        text = f"maestro-celery completion fish | source; complete -C '{line}'"
        command = [needed("fish"), "--no-config", "-c", text]
        return subprocess.run(
            command, env=environment, cwd=place, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    assert completed("maestro-celery expl") == ["explain\twhy step records do not run or have ended"]
    assert completed("maestro-celery samples study_a --step po") == ["post"]
    assert set(completed("maestro-celery status study")) == {"study_a", "study_b"}
    assert completed("maestro-celery status res") == ["results/"]


def test_the_shells_of_ci_are_installed_by_it():
    """Given the list of packages that CI installs, then it has the shells of these tests."""
    assert {"zsh", "fish"} <= set((ROOT / ".ci" / "servers").read_text().replace(")", " ").split())
