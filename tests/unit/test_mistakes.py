"""Mistakes of users at the launch: `maestro run` and `maestro-celery` answer with one line, and create nothing.

Given a specification, a command line or a table with one mistake, when the command runs, then its output has one line
that names the mistake, no traceback, and no directory of a study exists.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import maestrowf.maestro
import pytest
from click.testing import CliRunner
from filelock import FileLock

from maestro_celery_plugin.cli import main as maestro_celery
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.maestro import launch_options
from maestro_celery_plugin.maestro.command_line import is_study
from maestro_celery_plugin.maestro.launch import _lock_of
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.maestro.touchpoints import TOUCHPOINTS
from maestro_celery_plugin.study.plan import StudyPlan

SPEC = """\
description:
  name: study
  description: a study
env:
  variables:
    N: 3
study:
- name: sim
  description: a step
  run:
    cmd: echo $(X)
- name: post
  description: another step
  run:
    cmd: ls
    depends: [sim_*]
global.parameters:
  P:
    values: [1, 2]
    label: P.%%
merlin:
  resources:
    workers:
      all:
        args: --concurrency 2
        steps: [all]
  samples:
    generate:
      cmd: seq 1 3 > $(MERLIN_INFO)/x.csv
    file: $(MERLIN_INFO)/x.csv
    column_labels: [X]
"""
PLAIN = """\
description: {name: plain, description: d}
env: {variables: {N: 1}, labels: {LONG: a}}
study:
- {name: one, description: d, run: {cmd: echo $(N)}}
"""
FLUX = """\
description: {name: flux, description: d}
batch: {type: flux, queue: q}
study:
- {name: sim, description: d, run: {cmd: $(LAUNCHER) echo $(X), nodes: 1}}
- {name: native, description: d, run: {cmd: $(LAUNCHER) echo, nodes: 1, procs: 2}}
merlin:
  resources: {unassigned: maestro, workers: {w: {steps: [sim], nodes: 1}}}
  samples: {file: table.csv, column_labels: [X]}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The directory of a user without a terminal and without a configuration; the process keeps its options."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("MAESTRO_CELERY_BROKER_URL", raising=False)
    before, environment = dict(vars(launch_options.OPTIONS)), dict(os.environ)
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    use_plugin(monkeypatch)
    monkeypatch.setattr(maestrowf.maestro, "start_process", lambda command: pytest.fail(f"launched: {command}"))
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield home
    vars(launch_options.OPTIONS).update(before)
    for name in os.environ.keys() - environment.keys():  # of --env-file
        del os.environ[name]
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    Specification.text_without_ensemble = None


def use_plugin(monkeypatch):
    """Replace the names in Maestro, whatever other tests have imported before."""
    for point in TOUCHPOINTS:
        if point.name not in ("sleep", "_StepRecord", "ExecutionGraph"):  # no launch reaches these
            original = getattr(maestrowf.maestro, point.name)
            replaced = point.replace(getattr(original, "__wrapped__", original))
            monkeypatch.setattr(maestrowf.maestro, point.name, replaced)


def run(capfd, *words):
    """Call `maestro run`; return its exit code and its lines, without those of its log below the level of errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["maestro", "run", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            maestrowf.maestro.main()
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err
    return end.value.code, [line for line in (output.out + output.err).splitlines() if line]


def errors_of(lines):
    return [line for line in lines if not line.startswith("[")]


def check_refused(place, capfd, found, words, kept=()):
    before = sorted(place.rglob("*"))
    code, lines = run(capfd, *words)
    assert code == 1
    assert len(errors_of(lines)) == 1, lines
    assert errors_of(lines)[0].startswith("maestro: error: ")
    assert found in errors_of(lines)[0]
    assert sorted(place.rglob("*")) == before


SPEC_MISTAKES = [
    ("merlin:\n", "merlins:\n", "did you mean 'merlin'?"),
    ("description:\n  name", "descriptoin:\n  name", "did you mean 'description'?"),
    ("  name: study\n", "", "the key 'name' is missing"),
    ("  name: study\n", "  name: a/b\n", "description.name: found 'a/b'"),
    ("  name: study\n", f"  name: {'n' * 300}\n", "use at most 240"),
    ("  name: study\n", "  name: 7\n", "description.name: found '7'; text is needed"),
    ("study:\n- name: sim", "steps:\n- name: sim", "study: the block is missing or empty"),
    ("- name: sim", "- nam: sim", "did you mean 'name'?"),
    ("cmd: echo $(X)", "command: echo $(X)", "unknown key 'command'; use 'cmd'."),
    ("cmd: ls", "cmd: ls\n    command: ls", "unknown key 'command'; use 'cmd'."),
    ("cmd: ls", "cmd:", "study.post.run"),
    ("cmd: ls", "cmd: [ls]", "found a list; text is needed"),
    ("cmd: ls", "cmd: ls\n    cmd: pwd", "line 16: the key 'cmd' is already in line 15"),
    ("cmd: ls", "cmd: ls\n    max_retires: 3", "did you mean 'max_retries'?"),
    ("cmd: ls", "cmd: ls\n    max_retries: many", "found 'many'; an integer"),
    ("cmd: ls", "cmd: ls\n    shell: /bin/nosuch", "which is not a program"),
    ("cmd: ls", "cmd: ls $(sin.workspace)", "sin.workspace"),
    ("- name: post", "- name: sim", "sim"),
    ("[sim_*]", "[sin_*]", "did you mean 'sim_*'?"),
    ("[sim_*]", "sim_*", "depends: found 'sim_*'; a list"),
    ("[sim_*]", "[post]", "post"),
    ("values: [1, 2]", "value: [1, 2]", "did you mean 'values'?"),
    ("values: [1, 2]", "values: 1", "a list"),
    ("  P:\n", "  X:\n", "X"),
    ("label: P.%%", "label: P.%%\n  Q:\n    values: [1]\n    label: Q.%%", "all parameters need the same number"),
    ("args: --concurrency 2", "concurrency: 2", "unknown key 'concurrency'; use 'args: --concurrency N'."),
    ("args: --concurrency 2", "args: --concurency 2", "--concurency"),
    ("args: --concurrency 2", "args: --concurrency two", "two"),
    ("steps: [all]", "steps: [simm]", "unknown step 'simm'; steps are 'sim', 'post'."),
    ("steps: [all]", "step: [all]", "did you mean 'steps'?"),
    ("steps: [all]", "steps: all", "a list"),
    ("steps: [all]", "steps: [all]\n        nodes: none", "nodes"),
    ("workers:\n", "worker:\n", "did you mean 'workers'?"),
    ("      all:\n", "      a/b:\n", "a/b"),
    ("resources:\n", "resource:\n", "did you mean 'resources'?"),
    ("column_labels: [X]", "colum_labels: [X]", "did you mean 'column_labels'?"),
    ("column_labels: [X]", "column_labels: [X, X]", "X"),
    ("column_labels: [X]", "column_labels: []", "column_labels"),
    ("    file: $(MERLIN_INFO)/x.csv\n", "", "the key 'file' is missing"),
    ("N: 3", "N:", "env.variables.N"),
    ("N: 3", "N: 3\n    N: 4", "line 7: the key 'N' is already in line 6"),
    ("env:\n", "batch:\n  type: slrum\nenv:\n", "did you mean 'slurm'?"),
    ("env:\n", "batch:\n  tpye: local\nenv:\n", "did you mean 'type'?"),
    ("  run:\n    cmd: ls", "\trun:\n    cmd: ls", "invalid YAML"),
    ("cmd: ls", "cmd: 'ls", "invalid YAML"),
    ("cmd: ls", "cmd: a: b", "invalid YAML"),
]


@pytest.mark.parametrize(("right", "wrong", "found"), SPEC_MISTAKES, ids=lambda text: repr(text)[:30])
def test_a_mistake_in_a_specification_is_one_line(place, capfd, right, wrong, found):
    assert SPEC.count(right) == 1
    (place / "study.yaml").write_text(SPEC.replace(right, wrong))
    check_refused(place, capfd, found, ["-y", "study.yaml"])


COMMAND_LINES = [
    (["-y", "nowhere.yaml"], "'nowhere.yaml' cannot be read (No such file or directory)"),
    (["-y", "directory"], "'directory' is a directory"),
    (["-y", "empty.yaml"], "empty.yaml: the file is empty"),
    (["-y", "comments.yaml"], "comments.yaml: the file is empty"),
    (["study.yaml"], "there is no terminal for the answer; add -y (yes) or -n (no)"),
    (["-o", "directory", "--dry", "study.yaml"], "there is no terminal for the answer"),
    (["-y", "-o", "table.csv", "study.yaml"], "table.csv' is not a directory"),
    (["-y", "-o", "table.csv/out", "study.yaml"], "table.csv' is not a directory"),
    (["-y", "-o", "/proc/self/fd/out", "study.yaml"], "/proc/self/fd"),
    (["-y", "-o", "out[1]", "study.yaml"], "has one of the characters '*?['"),
    (["-y", "-o", "directory", "study.yaml"], "is not the directory of a study, and -y would delete it"),
    (["-y", "-o", ".", "study.yaml"], "'study.yaml' with it"),
    (["-y", "-p", "nowhere.py", "study.yaml"], "--pgen: 'nowhere.py' is not a file"),
    (["-y", "--pargs", "A:1", "--", "study.yaml"], "--pargs: there is no --pgen"),
    (["-y", "-p", "generator.py", "--pargs", "A", "--", "study.yaml"], "--pargs: found 'A'"),
    (["-y", "-a", "0", "study.yaml"], "--attempts: found 0"),
    (["-y", "-t", "-1", "study.yaml"], "--throttle: found -1"),
    (["-y", "-r", "-1", "study.yaml"], "--rlimit: found -1"),
    (["-y", "-s", "-1", "study.yaml"], "--sleeptime: found -1"),
    (["-y", "--vars", "M=3", "study.yaml"], "study.yaml: env.variables: --vars: unknown variable 'M'; allowed: 'N'."),
    (["-y", "--vars", "LONGER=1", "N=2", "plain.yaml"], "plain.yaml: env.variables: --vars: unknown variable 'LONGER'; did you mean 'LONG'?"),
    (["-y", "study.yaml", "--vars", "N"], "--vars: found 'N'; 'NAME=VALUE' is needed"),
    (["-y", "study.yaml", "--vars", "=N"], "--vars: found '=N'; 'NAME=VALUE' is needed"),
    (["-y", "study.yaml", "--vars", "N=", "M=3"], "--vars: 'N' has no value"),
    (["-y", "study.yaml", "--vars", "SPECROOT=/"], "--vars: 'SPECROOT' is Maestro's"),
    *((["-y", option, "", "study.yaml"], f"{option}: its value is empty; is a shell variable not set?")
      for option in ("--out", "--samplesfile", "--env-file", "--broker", "--notify")),
    (["-y", "--samplesfile", "nowhere.csv", "study.yaml"], "--samplesfile: 'nowhere.csv' is not a file"),
    (["-y", "--samplesfile", "table.csv", "plain.yaml"], "plain.yaml: merlin.samples: --samplesfile: there is no such block"),
    (["-y", "--samplesfile", "table.csv", "no_samples.yaml"], "no_samples.yaml: merlin.samples: --samplesfile: there is no such block"),
    (["-y", "--no-errors", "study.yaml"], "--no-errors: a study does not start without its batch system; add --dry"),
    (["-y", "--no-errors", "--dry", "plain.yaml"], "plain.yaml: --no-errors: only studies with an ensemble have it"),
    (["-y", "--dry", "flux.yaml"], "flux.yaml: batch.type: found 'flux' for the steps that Maestro runs itself, but this Python has no package 'flux'"),
    (["-y", "--env-file", "nowhere.env", "study.yaml"], "--env-file: 'nowhere.env' cannot be read (No such file or directory)"),
    (["-y", "--env-file", "wrong.env", "study.yaml"], "--env-file: 'wrong.env', line 4: this is not NAME=VALUE"),
    (["-y", "--env-file", "empty.env", "study.yaml"], "study.yaml: env.variables.N: --env-file: it is empty"),
    (["-y", "--env-file", "own.env", "study.yaml"], "--env-file: 'own.env', line 1: 'MAESTRO_CELERY_BROKER_URL' is a variable of the plugin"),
    (["-y", "--broker", "nowhere", "study.yaml"], "the URL needs one of the schemes"),
    (["-y", "--broker", "redis://127.0.0.1:1", "study.yaml"], "use a private broker: --broker private"),
    (["-y", "--broker-host", "203.0.113.1", "study.yaml"], "--broker-host: the private broker cannot listen"),
]


@pytest.mark.parametrize(("words", "found"), COMMAND_LINES, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_a_mistake_on_the_command_line_is_one_line(place, capfd, words, found):
    (place / "study.yaml").write_text(SPEC)
    (place / "directory").mkdir()
    (place / "directory" / "precious").touch()
    texts = {"empty.yaml": "", "comments.yaml": "---\n# nothing\n\n", "table.csv": "1\n", "generator.py": ""}
    texts |= {"plain.yaml": PLAIN, "no_samples.yaml": PLAIN + "merlin: {}\n"}
    texts |= {"flux.yaml": FLUX, "wrong.env": "A=1\n\n# B\nB is secret\n", "empty.env": "N=\n", "own.env": "MAESTRO_CELERY_BROKER_URL=u\n"}
    for name, text in texts.items():
        (place / name).write_text(text)
    check_refused(place, capfd, found, words)


def test_without_errors_a_dry_run_does_not_need_the_batch_system(place, capfd):
    for name, text in {"flux.yaml": FLUX, "table.csv": "1\n"}.items():
        (place / name).write_text(text)
    code, lines = run(capfd, "-y", "--dry", "-fg", "--no-errors", "-o", "out", "flux.yaml")
    assert (code, errors_of(lines)) == (0, [])
    assert (place / "out" / "native" / "native.sh").read_text() == "#!/bin/bash\n\n$(LAUNCHER) echo\n"
    assert "flux run" in (place / "out" / "sim" / "sim.sh").read_text()


GENERATORS = [
    ("", "has failed (AttributeError"),
    ("def get_custom_generator(env, **kwargs)\n", "has failed in line 1 (SyntaxError"),
    ("\ndef get_custom_generator(env, **kwargs):\n    return 1 / 0\n", "has failed in line 3 (ZeroDivisionError"),
    ("import nosuchmodule\n", "has failed"),
]


@pytest.mark.parametrize(("code", "found"), GENERATORS)
def test_an_error_in_a_parameter_generator_is_one_line(place, capfd, code, found):
    (place / "study.yaml").write_text(SPEC)
    (place / "generator.py").write_text(code)
    code, lines = run(capfd, "-y", "--dry", "-p", "generator.py", "study.yaml")
    assert code == 1
    assert len(errors_of(lines)) == 1, lines
    assert f"maestro: error: --pgen: 'generator.py' {found}" in errors_of(lines)[0]


TABLES = [
    ("seq 1 0 > $(MERLIN_INFO)/x.csv", "x.csv"),
    ("printf '1\\n2,3\\n' > $(MERLIN_INFO)/x.csv", "x.csv"),
    ("printf '1,2\\n' > $(MERLIN_INFO)/x.csv", "x.csv"),
    ("mkdir $(MERLIN_INFO)/x.csv", "x.csv"),
    ("'true'", "x.csv"),
    ("nosuchprogram", "exit code 127"),
]


@pytest.mark.parametrize(("cmd", "found"), TABLES)
def test_a_mistake_in_a_table_is_one_message(place, capfd, cmd, found):
    (place / "study.yaml").write_text(SPEC.replace("seq 1 3 > $(MERLIN_INFO)/x.csv", cmd))
    code, lines = run(capfd, "-y", "--dry", "study.yaml")
    assert code == 1
    assert found in next(line for line in lines if line.startswith("maestro: error: "))


@pytest.mark.parametrize("words", [["status"], ["explain"], ["resume"], ["workers"], ["allocation"], ["doctor"], []])
def test_each_command_has_a_short_option_for_help(words):
    answer = CliRunner().invoke(maestro_celery, [*words, "-h"])
    assert answer.exit_code == 0
    assert "Usage:" in answer.output


@pytest.mark.parametrize("name", ["status", "explain", "resume", "workers"])
def test_a_command_for_a_directory_that_is_no_study_is_one_line(place, name):
    for directory in ("nowhere", "."):
        answer = CliRunner().invoke(maestro_celery, [name, directory])
        assert answer.exit_code in (1, 2)
        assert isinstance(answer.exception, SystemExit)
        assert len(answer.output.strip().splitlines()) == 1, answer.output


@pytest.mark.parametrize(
    ("names", "is_one"),
    [([], True), (["logs"], True), (["merlin_info", "mine"], True), (["batch.info", "a.pkl"], True), (["mine"], False), (["logs", "mine"], False)],
)
def test_yes_deletes_a_directory_only_if_it_is_a_study_or_empty(tmp_path, names, is_one):
    for name in names:
        (tmp_path / name).touch()
    assert is_study(tmp_path) is is_one


def test_a_study_that_is_not_launched_says_how_to_start_it(place, capfd):
    (place / "study.yaml").write_text(SPEC)
    code, lines = run(capfd, "-n", "-o", "out", "study.yaml")
    assert code == 0
    assert errors_of(lines)[-1] == f"Nothing runs; `maestro-celery resume {place / 'out'}` starts the study."


def test_a_cancellation_without_a_terminal_is_one_line(place, capfd, monkeypatch):
    (place / "study" / "merlin_info").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["maestro", "cancel", "study"])
    with pytest.raises(SystemExit) as end:
        maestrowf.maestro.main()
    output = capfd.readouterr()
    assert end.value.code == 1
    assert output.err.splitlines()[-1] == (
        "maestro: error: there is no terminal for the answer, and nothing is cancelled; add -y."
    )
    assert "Traceback" not in output.err


def test_an_interrupted_command_says_what_goes_on(place, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("maestro_celery_plugin.cli.resume.resume", interrupt)
    answer = CliRunner().invoke(maestro_celery, ["resume", "study"])
    assert answer.exit_code == 130
    assert answer.output == (
        "maestro-celery: interrupted; a conductor that runs goes on, and `maestro-celery status` shows it.\n"
    )


def test_an_interrupted_question_says_how_to_go_on(place, capfd, monkeypatch):
    (place / "study.yaml").write_text(SPEC)

    def interrupt(question):
        raise KeyboardInterrupt

    monkeypatch.setattr("maestrowf.maestro.six.moves.input", interrupt)
    monkeypatch.setattr("maestro_celery_plugin.maestro.command_line._stdin_has_ended", lambda: False)
    code, lines = run(capfd, "-o", "out", "study.yaml")
    assert code == 130, lines
    assert errors_of(lines) == [
        f"maestro: interrupted. Nothing runs; `maestro-celery resume {place / 'out'}` starts the study."
    ]


def test_an_interrupted_sample_generation_leaves_nothing_that_runs(place, capfd, monkeypatch):
    (place / "study.yaml").write_text(SPEC)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("maestro_celery_plugin.maestro.sample_generation._run", interrupt)
    code, lines = run(capfd, "-y", "-o", "out", "study.yaml")
    assert code == 130, lines
    assert errors_of(lines) == [f"maestro: interrupted. Nothing runs; '{place / 'out'}' can be deleted."]


def test_of_two_launches_into_one_directory_one_is_told(place, capfd):
    """Given a launch that generates its samples, when another one begins that has not seen its directory, then it ends."""
    (place / "study.yaml").write_text(SPEC)
    (place / "out" / "merlin_info").mkdir(parents=True)
    with FileLock(place / "out" / "merlin_info" / "launch.lock"):
        check_refused(place, capfd, "--out: another `maestro run` is launching a study in 'out'", ["-y", "-o", "out", "study.yaml"])


def test_only_the_first_of_two_launches_gets_a_new_directory(tmp_path):
    plan = StudyPlan(root=tmp_path, timestamp="T", settings=None, id="1" * 16, specification=None)
    plan.info.mkdir()
    first = _lock_of(plan)
    with pytest.raises(StudyError, match=r"Another `maestro run` is launching a study in"):
        _lock_of(plan)
    first.release()
    (tmp_path / "batch.info").touch()
    with pytest.raises(StudyError, match=r"Another `maestro run` has just launched a study in"):
        _lock_of(plan)
