"""What a killed conductor, supervisor and worker leave behind: `maestro cancel`, `resume` and a new launch end it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time

import pytest
from support import BIN, kill, wait_for

from maestro_celery_plugin.study.study_processes import StudyProcesses

# Each sample starts a process that cannot be found by its mark, its process session or its parent.
CMD = "(setsid env -i setsid sleep 601 > /dev/null 2>&1 &); echo $(A) >> runs; WAIT"
SPEC = f"""
    description: {{name: leftovers, description: d}}
    study:
      - name: sim
        description: d
        run: {{cmd: "{CMD}", restart: "echo again >> runs; exit 0"}}
    merlin:
      resources:
        workers:
          w: {{args: --concurrency 2, idle_limit: 20}}
      samples:
        generate: {{cmd: "seq 1 2 > $(MERLIN_INFO)/a.csv"}}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""
HANGING = SPEC.replace("WAIT", "sleep 602")


def below(study):
    """Return the commands of the processes whose current directory is in the study."""
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(study.path)):
                with open(f"/proc/{pid}/cmdline") as file:
                    line = file.read().replace("\0", " ").strip()
                if line:
                    found[pid] = line
        except OSError:
            continue
    return found


def samples(study):
    return sorted(line for line in below(study).values() if line.startswith("sleep"))


@pytest.fixture
def left(run):
    """Start a study whose samples hang, and kill everything except its samples."""

    def start(**options):
        study = run(HANGING, **options)
        study.await_text("sim/*/runs", count=2)
        wait_for(lambda: len(samples(study)) == 4, "the processes of the samples")
        study.kill_conductor()  # its host, which dies as the last one, starts no other
        kill(*study.processes("maestro_celery_plugin.worker"))
        kill(*study.processes("maestro_celery_plugin.host"))
        wait_for(lambda: not (study.processes("maestro_celery_plugin") or study.processes("bin/conductor")), "the end of conductor, workers and broker")
        assert len(samples(study)) == 4
        studies.append(study)
        return study

    studies = []
    yield start
    for study in studies:
        kill(*below(study))


@pytest.fixture
def process():
    """Start processes in a directory, and kill them after the test."""
    started = []

    def start(*words, **options):
        started.append(subprocess.Popen(words, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_cancel_ends_samples_whose_worker_is_dead_and_says_so(left):
    study = left()

    answer = study.command("maestro", "cancel", "-y", str(study.path))

    assert answer.returncode == 0, answer.stderr
    assert "Ended on this machine: 6 processes of samples without a worker.\n" in answer.stdout
    assert samples(study) == []
    again = study.command("maestro", "cancel", "-y", str(study.path))
    assert "This study has no conductor, and none of its workers, samples or jobs is left." in again.stdout


def test_cancel_spares_processes_that_a_user_has_started_in_the_workspace(left, process):
    """Given a shell of the user in a sample's directory, with a terminal or with a live parent, then it continues."""
    study = left()
    directory = next(study.path.glob("sim/*/runs")).parent
    child = process("sleep", "603", cwd=directory)
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(directory)
        # The parent of the first one dies, as that of a sample; the second one is the user's shell.
        os.execvp("sh", ["sh", "-c", "(sleep 604 &); exec sleep 605"])
    wait_for(lambda: {"sleep 604", "sleep 605"} <= {*samples(study)}, "the processes with a terminal")

    study.command("maestro", "cancel", "-y", str(study.path))

    assert child.poll() is None
    assert samples(study) == ["sleep 603", "sleep 604", "sleep 605"]
    os.close(terminal)
    kill(pid)
    os.waitpid(pid, 0)


def test_resume_ends_samples_whose_worker_is_dead(left):
    study = left()

    answer = study.command("maestro-celery", "resume", "-s", "1", str(study.path))

    assert answer.returncode == 0, answer.stderr
    assert "Ended 6 processes of samples without a worker.\n" in answer.stderr
    assert samples(study) == []
    study.await_end()
    assert study.states() == {"sim": "FINISHED"}
    assert study.outputs("sim/*/runs") == ["1\nagain\n", "2\nagain\n"]


def test_a_new_launch_ends_the_workers_of_a_killed_conductor_before_it_removes_the_directory(run):
    """Given a killed conductor whose workers live, then no old worker or sample touches the new study."""
    study = run(HANGING)
    study.await_text("sim/*/runs", count=2)
    wait_for(lambda: len(samples(study)) == 4, "the processes of the samples")
    study.kill_conductor()
    old = {*study.processes(), *below(study)}

    again = run(SPEC.replace("WAIT", "true").replace("setsid env -i setsid sleep 601 > /dev/null 2>&1 &", "true"))

    assert again.code == 0, again.output
    assert f"Ended what the earlier study in '{study.path}' had left: 1 worker with its samples, the host of its session.\n" in again.output
    assert not old & {*study.processes(), *below(study)}
    again.await_end()
    assert again.states() == {"sim": "FINISHED"}
    assert again.outputs("sim/*/runs") == ["1\n", "2\n"]


def test_a_new_launch_does_not_remove_the_directory_of_workers_on_other_machines(left, run):
    """Given a live worker on another machine, then the launch names it and how to end it, and changes nothing."""
    study = left()
    workers = study.path / "merlin_info/session/workers"
    beat = json.loads((workers / "w-1.json").read_text()) | {"name": "far-1", "machine": "another", "node": "far"}
    (workers / "far-1.json").write_text(json.dumps(beat))
    later = time.time() + 1000  # a heartbeat counts for 30 s, and the commands below may take longer
    os.utime(workers / "far-1.json", (later, later))

    again = run(HANGING)

    assert again.code == 1
    assert f"--out: the earlier study in '{study.path}' has not ended: it has workers on other machines ('far-1' on far); " in again.output
    assert f"end it with `maestro cancel {study.path}`" in again.output
    assert (workers / "far-1.json").exists()
    assert len(samples(study)) == 4
    answer = study.command("maestro", "cancel", "-y", str(study.path))
    assert "Workers on other machines were asked to end; this machine cannot reach them: 'far-1' on far." in answer.stdout


def test_without_the_consent_of_the_user_the_earlier_study_continues(left):
    study = left()
    words = [str(BIN / "maestro"), "run", "-o", str(study.path), str(study.path.with_suffix(".yaml"))]

    answer = subprocess.run(words, input="n\n", env=study.environment, capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stderr
    assert len(samples(study)) == 4


def test_a_conductor_that_has_not_locked_the_study_yet_is_found(tmp_path, process):
    """A conductor takes a second to start; a new launch must not remove its directory meanwhile."""
    script = tmp_path / "conductor"
    script.write_text("import time; time.sleep(60)")
    process("python3", str(script), "-t", "1", str(tmp_path / "study"))
    process("python3", str(script), "-t", "1", str(tmp_path / "other"))
    wait_for(lambda: StudyProcesses(tmp_path / "study").conductors(), "the conductor")
    assert len(StudyProcesses(tmp_path / "study").conductors()) == 1
