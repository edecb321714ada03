"""The commands `explain`, `allocation` and `workers` for a study."""

from __future__ import annotations

import textwrap

import pytest
from support import ROOT, wait_for

from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.states import AllocationState

SPEC = """
    description: {name: questions, description: d}
    env:
      variables: {OUTPUT_PATH: WHERE}
    study:
      - name: sim
        description: d
        run: {cmd: "echo $(A); CMD", task_queue: q}
      - name: post
        description: d
        run: {cmd: "true", depends: [sim]}
    merlin:
      resources:
        workers:
          sims: {args: --concurrency 2, steps: [sim], GROUP}
          posts: {args: --concurrency 1, steps: [post]}
      samples:
        generate: {cmd: "seq 1 3 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def spec(tmp_path, cmd="sleep 300", group="machines: []"):
    return SPEC.replace("CMD", cmd).replace("GROUP", group).replace("WHERE", str(tmp_path / "out"))


def explained(study):
    answer = study.command("maestro-celery", "explain", str(study.path))
    assert answer.stdout, answer.stderr
    return answer.stdout


def kill_conductor(study):
    """Kill the conductor, and wait for its death: until then, it holds the lock of the study."""
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")


def test_running_and_waiting_steps_are_explained(run, tmp_path):
    study = run(spec(tmp_path))
    now = "sim  RUNNING\n    Samples: 2 running, 1 waiting, 0 ended.\n    Worker group 'sims': sims-1 (busy).\n"
    wait_for(lambda: now in explained(study), "two samples in the ledger, and the heartbeat of the worker")

    text = explained(study)

    assert now in text
    assert "post  INITIALIZED\n    It needs sim (RUNNING).\n" in text


def test_a_study_without_a_conductor_names_the_command_that_continues_it(run, tmp_path):
    study = run(spec(tmp_path))
    study.await_text("sim/*/sim.out", "", count=2)

    kill_conductor(study)

    assert f"No conductor runs the study; `maestro-celery resume {study.path}` continues it." in explained(study)


def test_an_open_job_of_a_dead_conductor_is_named(run, tmp_path):
    study = run(spec(tmp_path))
    study.await_text("sim/*/sim.out", "", count=2)
    kill_conductor(study)
    directory = study.path / "merlin_info" / "allocations" / "sims" / "1"
    directory.mkdir(parents=True)
    Allocation("sims", 1, directory, job="77", state=AllocationState.RUNNING).store()

    text = explained(study)

    assert "Job 77 of allocation 'sims/1' was open at the last check. Its workers leave 300 s after their last work; " in text


def test_a_failed_step_and_its_dependent_step_are_explained(run, tmp_path):
    study = run(spec(tmp_path, cmd='[ $(A) != 1 ] && sleep 300 || exit 102'), foreground=True)

    text = explained(study)

    assert study.code == 2 and f"maestro: the study has failed; `maestro-celery explain {study.path}`" in study.output
    assert "    The step failed because of sample 0: exit code 102 (hard fail).\n" in text
    assert f"1 of 3 samples failed; `maestro-celery failed {study.path}` shows why, and what they have in common." in text
    assert f"`maestro-celery resume --failed {study.path}` runs them and the failed samples." in text
    assert "post  FAILED\n    It needs sim (FAILED).\n" in text


def test_failed_samples_of_a_finished_step_are_explained(run, tmp_path):
    study = run(spec(tmp_path, cmd="[ $(A) = 1 ] || exit 1"), foreground=True)

    assert explained(study).startswith("sim  FINISHED, 2 failed\n    2 of 3 samples failed; `maestro-celery failed ")


def test_a_cancellation_is_explained_until_the_study_is_resumed(run, tmp_path):
    study = run(spec(tmp_path))
    study.await_text("sim/*/sim.out", "", count=2)
    study.command("maestro", "cancel", "-y", str(study.path))
    study.await_end()
    assert "`maestro cancel` has cancelled it." in explained(study)

    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    wait_for(lambda: study.states().get("sim") == "RUNNING", "the resumed step")
    assert "has cancelled it" not in explained(study)


def test_the_error_of_a_conductor_is_shown(run, tmp_path):
    study = run(spec(tmp_path), "--dry", foreground=True)
    (study.path / "mine.txt").write_text("Traceback (most recent call last):\n  ...\nOSError: no space\n")

    text = explained(study)

    assert f"The conductor has ended with an error\n    OSError: no space\n    The traceback is at the end of '{study.path}" in text


def test_a_step_record_waits_for_the_step_records_with_its_parameters(run, tmp_path):
    """Given two parameter values, then a step record waits only for the step record with the same value."""
    text = spec(tmp_path).replace('"true", depends: [sim]', '"echo $(P)", depends: [sim]')
    text = text.replace("merlin:", "global.parameters:\n      P: {values: [1, 2], label: P.%%}\n    merlin:", 1)
    text = text.replace("echo $(A); ", "echo $(A) $(P); ")
    study = run(text)
    wait_for(lambda: study.states().get("post_P.2") == "INITIALIZED", "the states of Maestro")

    text = explained(study)
    # One explanation while the step records of `sim` have the same state, otherwise two.
    each = "post_P.1, post_P.2  INITIALIZED\n    Each needs the step record of 'sim' with its parameter values ("
    assert each in text or "post_P.2  INITIALIZED\n    It needs sim_P.2 (" in text
    assert "sim_P.1 (RUNNING), sim_P.2" not in text


def test_the_output_of_a_worker_that_cannot_start_is_shown(run, tmp_path, environment):
    """Given workers that end at their start, when three have ended, then the explanation shows their output."""
    broken = tmp_path / "broken" / "sitecustomize.py"
    broken.parent.mkdir()
    broken.write_text(
        "import os, sys\n"
        "if 'maestro_celery_plugin.worker' in sys.orig_argv:\n"
        "    os.write(2, b'no such celery\\n')\n"
        "    os._exit(3)\n"
    )
    environment["PYTHONPATH"] = str(broken.parent)
    study = run(spec(tmp_path))
    wait_for(lambda: study.states().get("sim") == "FAILED", "the failure of the step")

    text = explained(study)

    assert "worker group 'sims': 3 workers in a row have ended before they took a task" in text
    assert "no such celery" in text


def test_a_finished_study_needs_no_explanation(run, tmp_path):
    study = run(spec(tmp_path, cmd="true"), foreground=True)

    assert explained(study) == "All step records have finished.\n"


def test_a_directory_without_a_study_is_refused(run, tmp_path):
    study = run(spec(tmp_path, cmd="true"), "--dry")
    for command in ("explain", "workers"):
        answer = study.command("maestro-celery", command, str(tmp_path / "home"))
        assert answer.returncode == 1
        assert "is not the directory of a Maestro study" in answer.stderr
        assert "Traceback" not in answer.stderr


def test_workers_finds_the_running_study_of_a_specification(run, tmp_path):
    study = run(spec(tmp_path))
    file = tmp_path / "second.yaml"
    file.write_text(textwrap.dedent(spec(tmp_path)))
    too_early = study.command("maestro-celery", "workers", str(file))
    assert too_early.returncode == 1
    assert f"No study of '{file}' is running below '{tmp_path / 'out'}'" in too_early.stderr

    assert study.command("maestro", "run", "-y", str(file)).returncode == 0
    other = next((tmp_path / "out").glob("questions_*"))
    wait_for(lambda: (other / "merlin_info/session/broker.json").exists(), "the start of the second study")
    answer = study.command("maestro-celery", "workers", "--echo", "--group", "sims", str(file))

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.endswith(f"-m maestro_celery_plugin.worker -- {other}/merlin_info/session sims\n")
    study.command("maestro", "cancel", "-y", str(other))
    wait_for(lambda: not (other / "merlin_info/session/broker.json").exists(), "the end of the second study")


def test_an_unknown_worker_group_is_refused(run, tmp_path):
    study = run(spec(tmp_path))
    answer = study.command("maestro-celery", "workers", "--group", "sim", str(study.path))

    assert answer.returncode == 1
    assert "--group: the study has no worker group 'sim'; did you mean 'sims'?" in answer.stderr


@pytest.mark.parametrize(
    ("group", "title"),
    [
        ("nodes: 2, batch: {type: slurm}", "# allocation 'sims' of worker group 'sims', by slurm\n#!/bin/bash\n"),
        ("machines: [far]", "# worker group 'sims', started by a user on far\n"),
        ("machines: []", "# worker group 'sims', on this machine\n"),
    ],
)
def test_a_preview_creates_no_study(run, tmp_path, group, title):
    study = run(spec(tmp_path, group=group), "--dry")
    answer = study.command("maestro-celery", "allocation", str(tmp_path / "study.yaml"))

    assert answer.returncode == 0, answer.stderr
    assert title in answer.stdout
    assert not (tmp_path / "out").exists()


def test_a_specification_without_workers_has_no_preview(run, tmp_path):
    plain = ROOT / "tests" / "unit" / "specs" / "plain.yaml"
    study = run(spec(tmp_path), "--dry")
    answer = study.command("maestro-celery", "allocation", str(plain))

    assert answer.returncode == 1
    assert "plain.yaml: there is no 'merlin' block" in answer.stderr
