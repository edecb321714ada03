"""After the death of a process, each sample has one outcome, and only interrupted samples run again."""

from __future__ import annotations

import collections
import os
import subprocess

import numpy as np
import psutil
import pytest
from support import kill, wait_for

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger

COUNT = 24
# The samples that start first end. The others wait until the test has killed something, so that the study still runs then.
ENDING = 4
SPEC = """
    description: {name: faults, description: d}
    study:
      - name: sim
        description: d
        run:
          cmd: |
            echo "cmd $(A)" >> runs
            echo begun
            for n in 1 2 3 4; do mkdir $(SPECROOT)/$n 2> /dev/null && ends=yes && sleep 1 && break; done
            until [ "$ends" ] || [ -e $(SPECROOT)/go ]; do sleep 0.1; done
            echo done
          restart: |
            echo "restart $(A)" >> runs
            echo done
      - name: post
        description: d
        run: {cmd: "grep -l done $(sim.workspace)/$(MERLIN_GLOB_PATH)sim.out | wc -l", depends: [sim]}
    merlin:
      resources:
        workers:
          w: {args: ARGS}
      samples:
        generate: {cmd: "seq 1 24 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
""".replace("ARGS", "--concurrency 4")


def assert_complete(study, killed_slots: int) -> None:
    """Check that each sample has finished once, and that only samples in killed slots have run twice."""
    samples = study.status()["steps"][0]["samples"]
    assert samples == {"total": COUNT, "finished": COUNT, "failed": 0, "running": 0, "pending": 0}
    assert study.outputs("post/post.out") == [f"{COUNT}\n"]
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    entries = entries[entries["record"] == 1]
    ends = collections.Counter(entries[(entries["kind"] == Kind.ENDED) & (entries["code"] == 0)]["start"].tolist())
    assert ends == dict.fromkeys(range(COUNT), 1)
    starts = collections.Counter(entries[entries["kind"] == Kind.STARTED]["start"].tolist())
    assert sum(count - 1 for count in starts.values()) <= killed_slots
    runs = [text.splitlines() for text in study.outputs("sim/*/runs")]
    assert all(line.startswith("restart") for lines in runs for line in lines[1:])


def begun(study, slots: int = 4) -> None:
    """Wait until the first samples have ended, and each slot has a sample that waits."""

    def are_held() -> bool:
        place = study.path / "merlin_info" / "ledger"
        kinds = read_ledger(place)["kind"] if place.exists() else np.array([])
        return ((kinds == Kind.ENDED).sum(), (kinds == Kind.STARTED).sum()) == (ENDING, ENDING + slots)

    wait_for(are_held, "the samples that wait")


def kill_all(study) -> None:
    """Kill all processes, also those that one of them has started before its own end."""
    while study.processes():
        kill(*study.processes())


def release_samples(study) -> None:
    (study.path.parent / "go").touch()


def end(study) -> None:
    release_samples(study)
    study.await_end()
    assert set(study.states().values()) == {"FINISHED"}


def test_a_killed_worker(run):
    study = run(SPEC)
    begun(study)

    kill(*study.processes("maestro_celery_plugin.worker"))
    end(study)

    assert_complete(study, killed_slots=4)
    assert len(list(study.path.glob("merlin_info/workers/*.log"))) == 2


def test_a_killed_supervisor_of_a_worker(run):
    """Given a worker whose supervisor is killed, then the worker ends its samples, and another worker continues."""
    study = run(SPEC)
    begun(study)

    workers = study.processes("maestro_celery_plugin.worker")
    kill(*(pid for pid in workers if psutil.Process(pid).ppid() not in workers))
    end(study)

    assert_complete(study, killed_slots=4)


def test_a_killed_server(run):
    """Given a broker that dies with all its queues, then it starts again, and no sample runs twice."""
    study = run(SPEC)
    begun(study)

    kill(*study.server())
    end(study)

    assert_complete(study, killed_slots=0)
    assert len(list(study.path.glob("merlin_info/workers/*.log"))) == 1


def test_a_killed_server_and_its_supervisor(run):
    study = run(SPEC)
    begun(study)

    kill(*study.processes("maestro_celery_plugin.host"), *study.server())
    end(study)

    assert_complete(study, killed_slots=0)


def test_a_killed_supervisor_of_the_broker(run):
    """Given a broker whose supervisor is killed, then its server ends as well, and a new supervisor starts."""
    study = run(SPEC)
    begun(study)
    server = study.server()

    kill(*study.processes("maestro_celery_plugin.host"))
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in server), "the end of the server")
    end(study)

    assert_complete(study, killed_slots=0)


def test_a_killed_worker_and_a_killed_broker(run):
    study = run(SPEC)
    begun(study)

    kill(*study.processes("maestro_celery_plugin.worker"), *study.processes("maestro_celery_plugin.host"), *study.server())
    end(study)

    assert_complete(study, killed_slots=4)


def test_a_killed_conductor_whose_workers_continue_then_resume(run):
    study = run(SPEC)
    begun(study)

    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    answer = study.command("maestro-celery", "resume", str(study.path))
    assert answer.returncode == 0, answer.stderr
    second = study.command("maestro-celery", "resume", str(study.path))
    assert second.returncode == 1
    assert f"A conductor of the study '{study.path}' is running or starting" in second.stderr
    end(study)

    assert_complete(study, killed_slots=0)
    assert len(list(study.path.glob("merlin_info/workers/*.log"))) == 1


def test_all_processes_killed_then_resume(run):
    study = run(SPEC)
    begun(study)

    kill_all(study)
    assert study.status()["state"] == "INTERRUPTED"
    assert study.status()["steps"][0]["samples"]["running"] == 0
    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    end(study)

    assert_complete(study, killed_slots=4)


def test_workers_and_broker_end_after_a_killed_conductor(run):
    """Given an idle limit of 2 s, when the conductor is killed, then workers and broker end by themselves."""
    study = run(SPEC.replace("ARGS", "").replace("{args: --concurrency 4", "{args: --concurrency 4, idle_limit: 2"))
    begun(study)

    study.kill_conductor()
    release_samples(study)
    wait_for(lambda: not study.processes(), "the end of workers and broker")


def test_cancel_ends_the_workers_of_a_killed_conductor(run):
    """Given a killed conductor, then `maestro cancel` ends samples, workers and broker, and reports this."""
    study = run(SPEC)
    begun(study)
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")

    answer = study.command("maestro", "cancel", "-y", str(study.path))

    assert answer.returncode == 0, answer.stderr
    wait_for(lambda: not study.processes(), "the end of workers and broker")
    # The host of the session sees the request as well: it may be faster, and its log has the report then.
    said = answer.stdout + (study.path / "merlin_info/session/host.log").read_text()
    assert "This study has no conductor. What it has left is cancelled:\nEnded on this machine: 1 worker with its samples" in said
    again = study.command("maestro", "cancel", "-y", str(study.path))
    assert "This study has no conductor, and none of its workers, samples or jobs is left." in again.stdout
    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    end(study)
    assert_complete(study, killed_slots=4)


def test_a_killed_process_of_the_prefork_pool(run):
    study = run(SPEC.replace("--concurrency 4", "--pool prefork --concurrency 2"))
    begun(study, slots=2)
    ledgers = [path.stem for path in study.path.glob("merlin_info/ledger/w-1.*.ledger")]
    assert ledgers, "each pool process has a ledger of its own"

    kill(int(ledgers[0].rpartition(".")[2]))
    end(study)

    assert_complete(study, killed_slots=2)


def test_a_cancelled_study_that_is_resumed(run):
    study = run(SPEC)
    begun(study)
    study.command("maestro", "cancel", "-y", str(study.path))
    study.await_end()
    assert study.states() == {"sim": "CANCELLED", "post": "CANCELLED"}

    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    end(study)

    assert_complete(study, killed_slots=4)


def test_a_finished_study_that_is_resumed_runs_no_sample(run, tmp_path):
    (tmp_path / "go").touch()
    study = run(SPEC, foreground=True)
    before = read_ledger(study.path / "merlin_info" / "ledger")

    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    study.await_end()

    after = read_ledger(study.path / "merlin_info" / "ledger")
    assert (after["kind"] == Kind.STARTED).sum() == (before["kind"] == Kind.STARTED).sum()
    assert set(study.states().values()) == {"FINISHED"}


def test_failed_samples_run_again_on_request(run, tmp_path):
    (tmp_path / "go").touch()
    study = run(SPEC.replace("echo begun", "test -e $(SPECROOT)/repaired || exit 1"), foreground=True)
    assert study.status()["steps"][0]["samples"]["failed"] == COUNT
    (study.path.parent / "repaired").touch()

    assert study.command("maestro-celery", "resume", "--failed", str(study.path)).returncode == 0
    study.await_end()

    assert study.status()["steps"][0]["samples"]["finished"] == COUNT


def test_a_torn_and_a_damaged_ledger(run):
    """Given a ledger with a torn tail and a damaged entry, when the study is resumed, then all samples finish."""
    study = run(SPEC)
    begun(study)
    kill_all(study)
    ledger = study.path / "merlin_info" / "ledger"
    for path in ledger.iterdir():
        with path.open("ab") as file:
            file.write(b"\x09torn")
    damaged = next(ledger.glob("w-1.ledger"))
    data = bytearray(damaged.read_bytes())
    offset = next(n * 44 for n in range(len(data) // 44) if data[n * 44] == Kind.ENDED)
    data[offset + 20] ^= 0xFF
    damaged.write_bytes(data)

    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    end(study)

    samples = study.status()["steps"][0]["samples"]
    assert samples["finished"] == COUNT


def test_a_sample_that_kills_its_worker_several_times_fails(run):
    study = run(
        SPEC.replace("echo begun", 'test $(A) = 7 && kill -9 $(ps -o ppid= -p $$)\n            echo begun').replace(
            'echo "restart', 'test $(A) = 7 && kill -9 $(ps -o ppid= -p $$)\n            echo "restart'
        )
    )
    release_samples(study)
    study.await_end()

    samples = study.status()["steps"][0]["samples"]
    assert (samples["finished"], samples["failed"]) == (COUNT - 1, 1)
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    lost = entries[(entries["kind"] == Kind.LOST) & (entries["start"] == 6) & (entries["record"] == 1)]
    assert len(np.unique(lost["epoch"])) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_in_a_sample_directory(run, tmp_path):
    """Given a full file system in the directory of a sample, when there is space again, then the sample runs."""
    study = run(SPEC, "-s", "1")
    study.await_text("sim/*/sim.out", "begun")
    directory = study.path / "sim" / "23"
    directory.mkdir(exist_ok=True)
    if any(directory.iterdir()):
        pytest.fail("the last sample has run before the test has mounted its file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=3", "small", str(directory)], check=True)
    try:
        (directory / "filler").write_bytes(b"x" * 4096)
        release_samples(study)
        wait_for(lambda: "No space left" in "".join(study.outputs("merlin_info/workers/*.log")), "the full disk")
        (directory / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=1m,nr_inodes=100", str(directory)], check=True)
        study.await_end()
        assert_complete_after_full_disk(study)
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def assert_complete_after_full_disk(study) -> None:
    samples = study.status()["steps"][0]["samples"]
    assert (samples["finished"], samples["failed"]) == (COUNT, 0)
