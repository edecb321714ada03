"""A study from `maestro run` to its end, as a user sees it."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import BIN, PATIENCE_S, ROOT, WITHOUT_PLUGIN, Study, needed, wait_for

import maestro_celery_plugin

SAMPLES = """
        merlin:
          resources:
            workers:
              w: {{args: --concurrency 2, steps: [all]}}
          samples:
            generate: {{cmd: "seq 1 {count} > $(MERLIN_INFO)/a.csv"}}
            file: $(MERLIN_INFO)/a.csv
            column_labels: [A]
"""


def samples(count: int) -> str:
    return SAMPLES.format(count=count)


def test_the_tests_run_against_the_installed_package():
    assert "site-packages" in maestro_celery_plugin.__file__


def test_samples_run_and_no_process_remains(run):
    """Given a study with parameters, samples and a collecting step, when it runs, then every step record finishes."""
    study = run(ROOT / "specs" / "hello_samples.yaml").await_end()

    assert study.code == 0
    assert set(study.states().values()) == {"FINISHED"}
    assert study.outputs("greet/GREETING.hola/03/*.out") == ["hola, name-4!\n"]
    assert study.outputs("count/*.out") == ["20\n"]
    assert not study.processes()
    assert "--" not in (study.path / "status.csv").read_text()  # each step record has its times


def test_a_sample_leaves_at_most_four_files_and_directories(run):
    study = run(ROOT / "specs" / "hello_samples.yaml", foreground=True)

    below = [path for path in study.path.glob("greet/GREETING.hola/03/**/*")]

    assert sorted(path.suffix for path in below) == [".out", ".sh"]


def test_a_dependent_step_starts_without_waiting_for_the_poll(run):
    """Given a poll of an hour, when three steps depend on each other, then the study ends all the same."""
    steps = "".join(
        f"  - name: s{n}\n    description: d\n    run: {{cmd: 'echo $(A)', depends: [{f's{n - 1}' if n else ''}]}}\n"
        for n in range(3)
    )
    study = run(f"description: {{name: n, description: d}}\nstudy:\n{steps}" + textwrap.dedent(samples(3)), "-s", "3600")

    study.await_end()

    assert set(study.states().values()) == {"FINISHED"}


def test_a_spec_with_merlin_step_keys_only_runs_on_workers(run):
    study = run(
        """
        description: {name: shell, description: d}
        study:
          - name: one
            description: d
            run: {cmd: 'print("from python")', shell: /usr/bin/env python3}
        """,
        foreground=True,
    )
    assert study.outputs("one/one.out") == ["from python\n"]


def test_python_and_perl_run_samples(run):
    study = run(
        """
        description: {name: shells, description: d}
        study:
          - name: py
            description: d
            run: {cmd: 'print("$(A)" * 2)', shell: python3}
          - name: pl
            description: d
            run: {cmd: 'print "$(A)\\n";', shell: /usr/bin/env perl}
        """
        + samples(2),
        foreground=True,
    )
    assert study.outputs("py/*/py.out") == ["11\n", "22\n"]
    assert study.outputs("pl/*/pl.out") == ["1\n", "2\n"]


def test_merlin_tokens(run):
    study = run(
        """
        description: {name: tokens, description: d}
        study:
          - name: sim
            description: d
            run:
              cmd: |
                $(LAUNCHER) echo "$(A)|$(B)|$(MERLIN_SAMPLE_ID)|$(MERLIN_SAMPLE_PATH)|$(MERLIN_SAMPLE_VECTOR)"
                echo "$(MERLIN_SAMPLE_NAMES)|$(MERLIN_SUCCESS)$(MERLIN_RETRY)|$(WORKSPACE)|$PWD"
          - name: all
            description: d
            run:
              cmd: |
                echo "$(MERLIN_GLOB_PATH)|$(MERLIN_PATHS_ALL)|$(MERLIN_INFO)|$(MERLIN_WORKSPACE)"
                echo $(sim.workspace)/$(MERLIN_GLOB_PATH)sim.out
              depends: [sim]
        merlin:
          samples:
            generate: {cmd: "printf '1,x\\n2,y\\n' > $(MERLIN_INFO)/t.csv"}
            file: $(MERLIN_INFO)/t.csv
            column_labels: [A, B]
        """,
        foreground=True,
    )
    root = study.path
    assert study.outputs("sim/01/sim.out") == [f"2|y|1|01|2 y\nA B|0104|{root}/sim|{root}/sim/01\n"]
    assert study.outputs("all/all.out") == [
        f"*/|00 01|{root}/merlin_info|{root}\n{root}/sim/00/sim.out {root}/sim/01/sim.out\n"
    ]


def test_hostile_values_reach_the_script_as_text(run, tmp_path):
    """Given values with shell syntax, when samples run, then scripts receive them as text, and execute nothing."""
    values = ["a'b", 'say "hi"', "$(touch /tmp/pwned)", "`id`", "back\\slash \\1 \\n", "../../up", "two\nlines", "; rm x"]
    table = tmp_path / "values.csv"
    table.write_bytes(b"".join(b'"' + v.replace('"', '""').encode() + b'"\n' for v in values))
    study = run(
        f"""
        description: {{name: hostile, description: d}}
        study:
          - name: sim
            description: d
            run:
              cmd: |
                cat <<'END_OF_VALUE' > value.txt
                $(V)
                END_OF_VALUE
        merlin:
          samples: {{file: {table}, column_labels: [V]}}
        """,
        foreground=True,
    )
    assert study.outputs("sim/*/value.txt") == [f"{value}\n" for value in values]
    assert len(list(study.path.glob("sim/*"))) == len(values) + 1  # and sim.sh


EXIT_CODES = """
    description: {name: codes, description: d}
    study:
      - name: sim
        description: d
        run:
          max_retries: 2
          retry_delay: 0
          cmd: |
            echo cmd >> tries
            echo "went wrong" >&2
            test $(A) = 104 -a $(wc -l < tries) -gt 1 && exit 0
            exit $(A)
          restart: |
            echo restart >> tries
            test $(wc -l < tries) -gt 2 && exit 0
            exit 100
      - name: after
        description: d
        run: {cmd: echo after, depends: [sim]}
    merlin:
      samples:
        generate: {cmd: "printf '%s\\n' CODES > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def test_soft_failures_are_recorded_and_the_step_continues(run):
    study = run(EXIT_CODES.replace("CODES", "0 1 101 100 104"), foreground=True)

    status = study.status()

    assert study.states() == {"sim": "FINISHED", "after": "FINISHED"}
    assert status["state"] == "FINISHED"
    assert study.code == 1
    assert f"maestro: 2 samples have failed; `maestro-celery failed {study.path}` says what they have in common." in study.output
    assert status["steps"][0]["samples"] == {"total": 5, "finished": 3, "failed": 2, "running": 0, "pending": 0}
    assert study.outputs("sim/03/tries") == ["cmd\nrestart\nrestart\n"]
    assert study.outputs("sim/04/tries") == ["cmd\ncmd\n"]
    assert study.outputs("sim/01/sim.err") == ["went wrong\n"]


def test_retries_are_limited(run):
    """Given a sample that always requests another run, when `max_retries` is reached, then the sample fails."""
    spec = EXIT_CODES.replace("CODES", "104").replace("-gt 1", "-gt 99")
    study = run(spec, foreground=True)

    assert study.status()["steps"][0]["samples"]["failed"] == 1
    assert study.outputs("sim/tries") == ["cmd\n" * 3]
    assert study.outputs("sim/sim.err")[0].count("went wrong") == 3
    assert study.outputs("sim/sim.err")[0].count("=== run again") == 2


@pytest.mark.parametrize("code", [102, 106])
def test_a_hard_failure_fails_the_step_and_its_dependent_step(run, code):
    study = run(EXIT_CODES.replace("CODES", f"0 {code}"), foreground=True)

    assert study.states() == {"sim": "FAILED", "after": "FAILED"}
    assert not (study.path / "after" / "after.out").exists()


def test_a_step_that_is_not_sampled_fails_as_in_maestro(run):
    """Given steps that end with 1 and 101, then only the first one fails, and what depends on it does not run."""
    step = "{{name: {0}, description: d, run: {{cmd: 'echo {0}; exit {1}', depends: [{2}]}}}}".format
    study = run(
        f"""
        description: {{name: prep, description: d}}
        study: [{step("bad", 1, "")}, {step("after", 0, "bad")}, {step("soft", 101, "")}, {step("next", 0, "soft")}]
        merlin: {{}}
        """,
        foreground=True,
    )

    assert study.states() == {"bad": "FAILED", "after": "FAILED", "soft": "FINISHED", "next": "FINISHED"}
    assert study.code == 2
    assert not (study.path / "after").exists()


@pytest.mark.parametrize(("limit", "state", "seconds"), [("2", "FINISHED", 0), ("30%", "FAILED", 600)])
def test_a_step_fails_when_more_samples_fail_than_may(run, limit, state, seconds):
    """Given 5 samples of which 2 fail, then `max_failures` decides, and a running sample is ended."""
    spec = EXIT_CODES.replace("CODES", "0 1 1 0 0").replace("max_retries: 2", f"max_failures: {limit}")
    study = run(spec.replace("exit $(A)", f"[ $(MERLIN_SAMPLE_ID) != 0 ] || sleep {seconds}; exit $(A)"), foreground=True)

    assert study.states() == {"sim": state, "after": state}
    assert study.code == (1 if state == "FINISHED" else 2)


def test_a_dry_run_writes_scripts_and_starts_no_process(run):
    study = run(ROOT / "specs" / "hello_samples.yaml", "--dry", foreground=True)

    scripts = sorted(str(p.relative_to(study.path)) for p in study.path.glob("greet/GREETING.hola/**/*.sh"))

    assert scripts == ["greet/GREETING.hola/00/greet_GREETING.hola.sh", "greet/GREETING.hola/greet_GREETING.hola.sh"]
    assert 'echo "hola, name-1!"' in study.outputs(scripts[0])[0]
    assert set(study.states().values()) == {"DRYRUN"}
    assert not (study.path / "merlin_info" / "session").exists()
    assert not study.processes()


@pytest.mark.parametrize("options", [["--hashws"], ["--usetmp"], ["-t", "1"], ["-a", "3"], ["-s", "1"]], ids=str)
def test_options_of_maestro_run(run, options):
    study = run(ROOT / "specs" / "hello_samples.yaml", *options, foreground=True)

    assert study.outputs("count/*.out") == ["20\n"]


def test_parameter_generator(run, tmp_path):
    generator = tmp_path / "pgen.py"
    generator.write_text(
        "from maestrowf.datastructures.core import ParameterGenerator\n"
        "def get_custom_generator(env, **kwargs):\n"
        "    p = ParameterGenerator()\n"
        "    p.add_parameter('GREETING', ['a', 'b', 'c'], 'G.%%')\n"
        "    return p\n"
    )
    study = run(ROOT / "specs" / "hello_samples.yaml", "-p", str(generator), foreground=True)

    assert study.outputs("count/*.out") == ["30\n"]


def test_generated_parameters_are_checked(run, tmp_path):
    """Given two generated values with one directory, then the launch stops with one line, and no step runs."""
    generator = tmp_path / "pgen.py"
    generator.write_text(
        "from maestrowf.datastructures.core import ParameterGenerator\n"
        "def get_custom_generator(env, **kwargs):\n"
        "    p = ParameterGenerator()\n"
        "    p.add_parameter('GREETING', ['Na', 'Na+'], 'G.%%')\n"
        "    return p\n"
    )
    study = run(ROOT / "specs" / "hello_samples.yaml", "-p", str(generator))

    assert study.code == 1
    assert "study.greet: GREETING=Na and GREETING=Na+ have one directory, 'greet/G.Na'" in study.output
    assert "Traceback" not in study.output
    assert not (study.path / "batch.info").exists()


def test_maestro_runs_by_its_path_without_an_activated_environment(run, environment):
    assert str(BIN) not in environment["PATH"]

    study = run(ROOT / "specs" / "hello.yaml").await_end()

    assert set(study.states().values()) == {"FINISHED"}


def test_a_broker_that_does_not_answer_stops_the_launch(run):
    study = run(ROOT / "specs" / "hello.yaml", "--broker", "redis://127.0.0.1:1/0")

    assert study.code == 1
    assert "redis://127.0.0.1:1/0" in study.output
    assert "Traceback" not in study.output
    assert not study.path.exists()


WITHOUT_ENSEMBLE = """
    description: {name: plain, description: d}
    batch: {type: local}
    env:
      variables: {X: 1}
    study:
      - name: one
        description: d
        run: {cmd: echo "$(X) $(P)"}
    global.parameters:
      P: {values: [1, 2], label: P.%%}
"""


def test_a_spec_without_an_ensemble_gives_the_same_files_with_and_without_the_plugin(run, tmp_path):
    with_plugin = run(WITHOUT_ENSEMBLE, name="with", foreground=True).path
    without = tmp_path / "without"
    subprocess.run(
        [sys.executable, "-c", WITHOUT_PLUGIN, "run", "-y", "-fg", "-o", str(without), str(tmp_path / "with.yaml")],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )

    def files(root: Path) -> set[str]:
        names = {str(path.relative_to(root)) for path in root.rglob("*")}
        return {name.rpartition(".")[0].rpartition(".")[0] if name.endswith((".out", ".err")) else name for name in names}

    assert files(with_plugin) - {"with.yaml"} == files(without) - {"with.yaml"}
    assert (with_plugin / "batch.info").read_text() == (without / "batch.info").read_text()


def test_a_spec_without_an_ensemble_imports_neither_celery_nor_numpy(tmp_path):
    spec = tmp_path / "plain.yaml"
    spec.write_text("\n".join(line[4:] for line in WITHOUT_ENSEMBLE.splitlines()))
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('LOADED', sorted({m.split('.')[0] for m in sys.modules}"
        " & {'celery', 'kombu', 'numpy', 'pluggy'})))\n"
        "from maestrowf.maestro import main\nmain()\n"
    )
    for words in (["run", "-y", "-fg", "-o", str(tmp_path / "out"), str(spec)], ["status", str(tmp_path / "out")]):
        answer = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert "LOADED []" in answer.stdout, answer.stdout + answer.stderr


def test_a_spec_without_an_ensemble_gets_the_errors_of_maestro(run):
    study = run(WITHOUT_ENSEMBLE.replace("run: {cmd", "run: {cmmd: 1, cmd"))

    assert study.code == 1
    assert "Unrecognized key 'cmmd' found in study step 'one'." in study.output


def test_an_error_in_the_spec_stops_the_launch_before_it_creates_a_file(run):
    study = run(EXIT_CODES.replace("column_labels", "colum_labels"))

    assert study.code == 1
    assert "study.yaml: merlin.samples: unknown key 'colum_labels'; did you mean 'column_labels'?" in study.output
    assert "Traceback" not in study.output
    assert not study.path.exists()


def test_invalid_yaml_gives_one_line_with_the_position(run):
    study = run(EXIT_CODES.replace("max_retries: 2", "max_retries: 2: 3"))

    assert study.code == 1
    assert "study.yaml: line 7, column 21: invalid YAML: mapping values are not allowed here" in study.output
    assert "Traceback" not in study.output


def test_an_unknown_token_causes_one_warning(run):
    study = run(EXIT_CODES.replace("CODES", "0").replace("echo cmd", "echo $(AA) $(date) $(WORKSPACE)"), "--dry")

    assert "study.yaml: study.sim.run.cmd: $(AA) is not a column label, parameter or variable" in study.output
    assert study.output.count("is not a column label") == 1


def test_a_failing_sample_generation_stops_the_launch(run):
    study = run(EXIT_CODES.replace('"printf', '"echo no luck >&2; exit 3; printf'))

    assert study.code == 1
    assert "ended with exit code 3" in study.output
    assert "  no luck" in study.output
    assert "Traceback" not in study.output
    assert not (study.path / "batch.info").exists()


def test_cancel_ends_running_samples(run):
    """Given samples that ignore SIGTERM, when the study is cancelled, then they end, and all samples are pending."""
    study = run(
        """
        description: {name: stubborn, description: d}
        study:
          - name: sim
            description: d
            run: {cmd: "trap '' TERM; echo begun; sleep 300 & sleep 300; sleep 300 $(A)"}
        """
        + samples(4)
    )
    study.await_text("sim/*/sim.out", "begun", count=2)

    study.command("maestro", "cancel", "-y", str(study.path))
    study.await_end()

    assert study.states() == {"sim": "CANCELLED"}
    assert study.status()["steps"][0]["samples"]["pending"] == 4
    wait_for(lambda: not _sample_processes(study.path), "the end of the samples")


def _sample_processes(root: Path) -> list[str]:
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and _cwd(pid).startswith(str(root / "sim"))]


def _cwd(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_workers_that_cannot_start_fail_the_step_with_their_output(run, environment, tmp_path):
    """Given workers that end at their start, when three have ended, then the step fails, and the log has the output."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if not {'maestro_celery_plugin.worker', 'maestro_celery_plugin.fork_server'}.isdisjoint(sys.orig_argv):\n"
        "    sys.exit('no such library: libfoo')\n"
    )
    environment["PYTHONPATH"] = str(tmp_path)

    study = run(ROOT / "specs" / "hello.yaml", foreground=True)

    assert set(study.states().values()) == {"FAILED"}
    assert "3 workers in a row have ended before they took a task" in study.output
    assert "no such library: libfoo" in study.output


def test_an_address_of_another_machine_stops_the_launch(run):
    study = run(ROOT / "specs" / "hello_samples.yaml", "--broker-host", "203.0.113.1")

    assert study.code == 1
    assert "--broker-host: the private broker cannot listen on '203.0.113.1'" in study.output
    assert "Traceback" not in study.output
    assert not study.path.exists()


def test_an_interruption_in_the_foreground_is_one_line_and_leaves_no_process(run, environment, tmp_path):
    """Given Ctrl-C, which all processes of the terminal receive, then the study stops, and `resume` goes on with it."""
    path = tmp_path / "study.yaml"
    text = """
        description: {name: s, description: d}
        study:
          - {name: sim, description: d, run: {cmd: "echo $(A); while test ! -e $(SPECROOT)/go; do sleep 0.1; done"}}
    """
    path.write_text(textwrap.dedent(text + samples(3)))
    study = Study(tmp_path / "study", environment)
    command = [str(BIN / "maestro"), "run", "-y", "-fg", "-s", "1", "-o", str(study.path), str(path)]
    # In the background, a shell lets its commands ignore SIGINT, and so the tests.
    not_ignored = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=not_ignored,
    ) as process:
        study.await_text("sim/*/*.out", "1")
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=PATIENCE_S)[1]

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == (
        "maestro: interrupted. The study has stopped, and its local workers end with it; `maestro-celery resume "
        f"{study.path}` goes on with it."
    )
    wait_for(lambda: not study.processes(), "the end of all processes")
    (tmp_path / "go").touch()
    assert study.command("maestro-celery", "resume", "-fg", "-s", "1", str(study.path)).returncode == 0
    assert sorted(text.splitlines()[-1] for text in study.outputs("sim/*/*.out")) == ["1", "2", "3"]


ODD_NAME = """a 'b" $HOME `id` \\\\ ;&|# {c}"""


def test_a_directory_may_have_any_characters_of_the_shell(run):
    """Given a launch without -fg, then shell, conductor, private broker and workers all find the directory."""
    text = """
        description: {name: "q'$a", description: d}
        study:
          - {name: sim, description: d, run: {cmd: echo $(X)}}
        merlin:
          resources:
            workers:
              "g 'h\\" $i": {steps: [all]}
          samples:
            generate: {cmd: seq 1 3 > x.csv}
            file: $(MERLIN_INFO)/x.csv
            column_labels: [X]
    """
    study = run(text, name=ODD_NAME).await_end()

    assert study.states() == {"sim": "FINISHED"}
    assert sorted(study.outputs("sim/*/*.out")) == ["1\n", "2\n", "3\n"]
    assert f"`maestro-celery status {shlex.quote(str(study.path))}` shows its progress" in study.output


def test_a_blank_in_the_path_stops_the_launch_of_a_study_with_batch_jobs(run):
    needed("sbatch")
    study = run(ROOT / "specs" / "slurm_sweep.yaml", name="a study")

    assert study.code == 1
    assert f"The path of the study '{study.path}' has a blank, and Maestro cannot submit batch jobs from it" in study.output
    assert "Traceback" not in study.output


def test_a_path_that_is_not_utf8_is_refused(environment, tmp_path):
    """Given a path with a byte that is no character, then the launch ends with one line that names it."""
    path = os.fsencode(tmp_path) + b"/s\xff"
    words = [str(BIN / "maestro"), "run", "-y", "-o", path, str(ROOT / "specs" / "hello_samples.yaml")]

    answer = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=PATIENCE_S)

    assert answer.returncode == 1
    (line,) = [line for line in answer.stderr.decode().splitlines() if "error:" in line]
    assert line.startswith("maestro: error: The path of the study b'")
    assert r"/s\xff' is not UTF-8; set another path with --out or OUTPUT_PATH." in line
    assert "Traceback" not in answer.stderr.decode()


# Stops the conductor when it has written the manifests of some step records: a test could be too slow to do it.
STOPS_ITSELF = """
import os, signal, sys

manifests = []


def look(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("manifest.json"):
        manifests.append(arguments[1])
        if len(manifests) == 5:
            os.kill(os.getpid(), signal.SIGSTOP)


if any(word.endswith("bin/conductor") for word in sys.orig_argv):
    sys.addaudithook(look)
"""


def test_cancel_while_maestro_submits_step_records(run, environment, tmp_path):
    """Given many step records, when `maestro cancel` comes during their submission, then the rest is not submitted."""
    (tmp_path / "sitecustomize.py").write_text(STOPS_ITSELF)
    environment["PYTHONPATH"] = str(tmp_path)
    count = 800
    study = run(f"""
        description: {{name: many, description: d}}
        study:
          - name: sim
            description: d
            run: {{cmd: "echo $(P) $(A) >> runs; sleep 30"}}
        global.parameters:
          P: {{values: {list(range(count))}, label: P.%%}}
        merlin:
          resources:
            workers:
              w: {{args: --concurrency 2}}
          samples:
            generate: {{cmd: "seq 1 2 > $(MERLIN_INFO)/a.csv"}}
            file: $(MERLIN_INFO)/a.csv
            column_labels: [A]
        """)
    wait_for(lambda: [pid for pid in study.processes("bin/conductor") if _is_stopped(pid)], "the stop of the conductor")

    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    for pid in study.processes("bin/conductor"):
        os.kill(pid, signal.SIGCONT)
    study.await_end()

    manifests = list(study.path.glob("merlin_info/records/sim/*/manifest.json"))
    assert 1 <= len(manifests) < count
    assert set(study.states().values()) == {"CANCELLED"}
    assert len(study.states()) == count


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def test_what_depends_on_a_repaired_sample_runs_again(run, tmp_path):
    """Given a failed sample on which other steps have run, when it is repaired, then they run again on all samples."""
    study = run(
        """
        description: {name: stale, description: d}
        study:
          - {name: sim, description: d, run: {cmd: "[ $(X) != 2 ] || [ -e $(SPECROOT)/fixed ] && echo $(X) > v.txt"}}
          - name: copy
            description: d
            run: {cmd: "echo run >> runs; cat $(sim.workspace)/$(MERLIN_SAMPLE_PATH)/v.txt > $(X).txt", depends: [sim]}
          - name: collect
            description: d
            run: {cmd: "cat $(sim.workspace)/$(MERLIN_GLOB_PATH)v.txt > all.txt", restart: "exit 9", depends: [sim]}
        merlin:
          samples:
            generate: {cmd: "seq 1 3 > $(MERLIN_INFO)/x.csv"}
            file: $(MERLIN_INFO)/x.csv
            column_labels: [X]
        """,
        foreground=True,
    )
    assert study.code == 1
    assert study.outputs("collect/all.txt") == ["1\n3\n"]
    (tmp_path / "fixed").touch()

    answer = study.command("maestro-celery", "resume", "-fg", "--failed", str(study.path))

    assert answer.returncode == 0, answer.stderr
    assert study.outputs("collect/all.txt") == ["1\n2\n3\n"]
    assert study.outputs("copy/*/runs") == ["run\n", "run\nrun\n", "run\n"]
    assert "  sim: 1 failed sample again\n" in answer.stdout
    assert "  copy: 1 sample again because of changed inputs\n" in answer.stdout
    assert "  collect: 1 step record again because of changed inputs\n" in answer.stdout

    answer = study.command("maestro-celery", "resume", "-fg", "--step", "copy", str(study.path))

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("This will run:\n  copy: 3 samples again\n")
    assert study.outputs("copy/*/runs") == ["run\nrun\n", "run\nrun\nrun\n", "run\nrun\n"]


def test_a_study_takes_a_corrected_specification(run, tmp_path):
    """Given a failed step and a worker that is left, when the specification is corrected, then the study finishes."""
    spec = """
        description: {name: fix, description: d}
        study:
          - {name: prep, description: d, run: {cmd: "echo mesh > mesh.txt; false"}}
          - {name: sim, description: d, run: {cmd: "cat $(prep.workspace)/mesh.txt; echo $(X)", depends: [prep]}}
        merlin:
          resources: {workers: {w: {args: --concurrency 1}}}
          samples:
            generate: {cmd: "seq 1 3 > $(MERLIN_INFO)/x.csv"}
            file: $(MERLIN_INFO)/x.csv
            column_labels: [X]
        """
    study = run(spec, foreground=True)
    assert study.states() == {"prep": "FAILED", "sim": "FAILED"}
    (tmp_path / "study.yaml").write_text(textwrap.dedent(spec.replace("; false", "").replace("concurrency 1", "concurrency 2")))

    answer = study.command("maestro-celery", "resume", "-fg", str(study.path))
    assert answer.returncode == 2
    assert "1 failed sample does not run again; --failed runs them, and what depends on them.\n" in answer.stdout
    assert "study.yaml' has changed since the launch (study.prep.run.cmd, merlin.resources.workers.w.args), but the " in answer.stderr
    answer = study.command("maestro-celery", "resume", "-fg", "--spec", str(tmp_path / "study.yaml"), str(study.path))

    assert answer.returncode == 0, answer.stderr
    assert "Changed in the specification: study.prep.run.cmd, merlin.resources.workers.w.args.\nThis will run:\n" in answer.stdout
    assert study.states() == {"prep": "FINISHED", "sim": "FINISHED"}
    assert study.outputs("sim/*/sim.out") == ["mesh\n1\n", "mesh\n2\n", "mesh\n3\n"]


def test_the_marker_of_merlin_is_written_and_obeyed_if_a_step_looks_for_it(run):
    """Given a step that looks for MERLIN_FINISHED, when a user deletes one, then its sample runs again, and what follows."""
    study = run(
        """
        description: {name: marked, description: d}
        study:
          - {name: sim, description: d, run: {cmd: "echo run >> runs; test $(A) != 2"}}
          - name: check
            description: d
            run: {cmd: "test -e $(sim.workspace)/$(MERLIN_SAMPLE_PATH)/MERLIN_FINISHED && echo $(A) > done", depends: [sim_*]}
          - {name: once, description: d, run: {cmd: echo}}
        merlin:
          samples:
            generate: {cmd: "seq 1 3 > $(MERLIN_INFO)/a.csv"}
            file: $(MERLIN_INFO)/a.csv
            column_labels: [A]
        """,
        foreground=True,
    )
    assert study.outputs("check/*/done") == ["1\n", "3\n"]
    assert [str(path.parent.relative_to(study.path)) for path in sorted(study.path.rglob("MERLIN_FINISHED"))] == [
        "check/00", "check/02", "once", "sim/00", "sim/02"
    ]  # fmt: skip
    (study.path / "sim" / "02" / "MERLIN_FINISHED").unlink()

    answer = study.command("maestro-celery", "resume", "-fg", str(study.path))

    assert "This will run:\n" in answer.stdout, answer.stderr
    assert "  sim: 1 sample again without MERLIN_FINISHED\n" in answer.stdout
    assert "  check: 1 sample again because of changed inputs\n" in answer.stdout
    assert study.outputs("sim/*/runs") == ["run\n", "run\n", "run\nrun\n"]
    assert (study.path / "sim" / "02" / "MERLIN_FINISHED").exists()


def test_samples_have_the_environment_of_the_user(run, environment):
    """Given a variable that Celery sets as well, when samples run in threads and in processes, then only marks are added."""
    environment["CELERY_LOG_LEVEL"] = "of the user"
    own = {"MAESTRO_CELERY_WORKER", "MAESTRO_CELERY_SESSION", "MAESTRO_CELERY_STUDY"}
    names = {"sim": own, "pool": {*own, "MAESTRO_CELERY_PROCESS"}}
    study = run(
        """
        description: {name: env, description: d}
        study:
          - {name: sim, description: d, run: {cmd: "env -0 # $(A)"}}
          - {name: pool, description: d, run: {cmd: "env -0 # $(A)", task_queue: other}}
        merlin:
          resources:
            workers:
              w: {args: --concurrency 1, steps: [sim]}
              p: {args: --concurrency 1 --pool prefork, steps: [pool]}
          samples:
            generate: {cmd: "seq 1 1 > $(MERLIN_INFO)/a.csv"}
            file: $(MERLIN_INFO)/a.csv
            column_labels: [A]
        """,
        "-s",
        "1",
        foreground=True,
    )

    for step, marks in names.items():
        (text,) = study.outputs(f"{step}/**/{step}.out")
        found = dict(variable.split("=", 1) for variable in text.split("\0") if variable)
        assert found.keys() - environment.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} == marks
        # The commands that the session adds come last.
        expected = {**environment, "PATH": f"{environment['PATH']}:{study.path}/merlin_info/session/bin"}
        assert {name: found[name] for name in environment} == expected


def test_a_step_is_cancelled_while_the_others_go_on(run):
    """Given running samples, when a record is cancelled and, after the death of the conductor, a step, then others finish."""
    study = run(
        """
        description: {name: cancel, description: d}
        study:
          - {name: sim, description: d, run: {cmd: "echo begun $(A) $(P); until test -e $(OUTPUT_PATH)/go; do sleep 0.1; done"}}
          - {name: post, description: d, run: {cmd: echo $(P), depends: [sim]}}
          - {name: other, description: d, run: {cmd: "echo begun $(A); until test -e $(OUTPUT_PATH)/go; do sleep 0.1; done"}}
          - {name: last, description: d, run: {cmd: echo last, depends: [other]}}
        global.parameters:
          P: {values: [1, 2], label: P.%%}
        merlin:
          resources: {workers: {w: {args: --concurrency 3, steps: [all]}}}
          samples:
            generate: {cmd: "seq 1 1 > $(MERLIN_INFO)/a.csv"}
            file: $(MERLIN_INFO)/a.csv
            column_labels: [A]
        """,
        "-s",
        "1",
    )

    def cancel(*names):
        answer = study.command("maestro-celery", "cancel", *(word for name in names for word in ("--step", name)), str(study.path))
        return answer.stdout + answer.stderr

    def runs(place):
        return any(_cwd(pid).startswith(str(study.path / place)) for pid in os.listdir("/proc") if pid.isdigit())

    study.await_text("**/*.out", "begun", count=3)
    assert "--step: the study has no step 'othar'; did you mean 'other'?" in cancel("othar")
    assert cancel("sim_P.1") == "The conductor cancels 1 step record, and what depends on it, within seconds.\n"
    wait_for(lambda: study.states()["post_P.1"] == "CANCELLED", "the end of the dependents")
    wait_for(lambda: not runs("sim/P.1"), "the end of the samples")
    assert study.states()["sim_P.1"] == "CANCELLED"
    explanation = study.command("maestro-celery", "explain", str(study.path)).stdout
    assert f"`maestro-celery resume --step sim_P.1 {study.path}` would run it after the end of the study." in explanation
    assert "remains" not in explanation

    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    assert runs("other")
    assert cancel("other").startswith("This study has no conductor. 1 step record will not run when it is resumed.\n")
    wait_for(lambda: not runs("other"), "the end of the samples without a conductor")

    answer = study.command("maestro-celery", "resume", "-s", "1", str(study.path))
    assert "Cancelled: other, sim_P.1, and what depends on them; --step NAME runs them." in answer.stdout
    (study.path / "go").touch()
    study.await_end()
    cancelled = {"sim_P.1": "CANCELLED", "post_P.1": "CANCELLED"}
    finished = {"sim_P.2": "FINISHED", "post_P.2": "FINISHED"}
    assert study.states() == {**cancelled, **finished, "other": "CANCELLED", "last": "CANCELLED"}

    study.command("maestro-celery", "resume", "-s", "1", "-fg", "--step", "other", str(study.path))
    assert study.states() == {**cancelled, **finished, "other": "FINISHED", "last": "FINISHED"}
    assert cancel("other") == "Nothing is cancelled: it has finished.\n"
