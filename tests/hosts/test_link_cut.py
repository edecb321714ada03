"""A host whose link is cut in mid-run and restored: with its files, or with the broker only; and wrong clocks."""

from __future__ import annotations

import collections
import csv
import itertools
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from other_host import COMMANDS, OtherHost
from support import BIN, PATIENCE_S, needed, wait_for

from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S

CUT_S = float(os.environ.get("LINK_CUT_S", SILENCE_LIMIT_S + 10))
# Three slots need two seconds for a sample, until the test has seen the host at work after the cut; then the rest ends at
# once. The host needs some time after the cut, because TCP sends again after pauses that become longer. So that samples
# remain for it, there is work for 200 s.
COUNT = 300
# Each attempt appends a line every 0.2 s, with the seconds since the boot of the machine, to a file that no cut concerns.
# Nothing in it uses the workspace, so that it would run on during a cut.
ATTEMPT = """
            say() { read seconds rest < /proc/uptime; echo "$1 $(A) $$ $HOSTNAME $seconds" >> RECORDS; }
            say start; for i in $(seq 1 TICKS); do [ -e ENOUGH ] || /bin/sleep 0.2; say tick; done; say end"""
SPEC = """
    description: {name: cut, description: d}
    study:
      - name: sim
        description: d
        run:
          cmd: |ATTEMPT
          restart: |ATTEMPT
    merlin:
      resources:
        overlap: True
        workers:
          near: {args: --concurrency 1, machines: [HERE]}
          far: {args: --concurrency 2 --pool POOL, machines: [otherhost]}
      samples:
        generate: {cmd: "seq 1 COUNT > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""
WRONG_CLOCK = """
import time
right, right_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: right() + AHEAD_S, lambda: right_ns() + AHEAD_S * 1_000_000_000
"""


@pytest.fixture(autouse=True)
def root():
    for name in COMMANDS:
        needed(name, "/sbin")
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("network namespaces require root")


@pytest.fixture
def records(tmp_path) -> Path:
    (tmp_path / "records").touch()  # a worker counts as busy before its first sample has written a line
    return tmp_path / "records"


@pytest.fixture
def mounting_host(tmp_path):
    """A host that has the workspace over its link only."""
    for name in ("sshfs", "sftp-server"):
        needed(name, "/usr/lib/openssh", "/usr/libexec/openssh")
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("sshfs needs /dev/fuse")
    (tmp_path / "shared").mkdir()
    with OtherHost(mounted=tmp_path / "shared") as host:
        yield host


@pytest.fixture
def start(run, environment, records, tmp_path):
    """Start a study, and the workers of its group `far` on a host, whose clock is ahead by some seconds."""

    def launch(host, pool, ahead_s=0, ticks=10):
        attempt = ATTEMPT.replace("RECORDS", str(records)).replace("ENOUGH", str(records.with_name("enough"))).replace("TICKS", str(ticks))
        spec = SPEC.replace("ATTEMPT", attempt).replace("HERE", socket.gethostname())
        name = "shared/study" if host.mounted else "study"
        if host.mounted:
            (host.mounted.parent / "shared").mkdir(exist_ok=True)
        study = run(spec.replace("POOL", pool).replace("COUNT", str(COUNT)), "--broker-host", host.near, "-s", "2", name=name)
        assert study.code == 0, study.output
        words = host.command(str(BIN / "maestro-celery"), "workers", str(study.path))
        study.worker = subprocess.Popen(words, env={**environment, **clock_of(tmp_path, ahead_s)}, stdin=subprocess.DEVNULL)
        workers.append(study.worker)
        wait_for(lambda: {"far", "near"} <= busy_groups(study), "work on both hosts")
        return study

    workers = []
    yield launch
    for worker in workers:
        worker.kill()
        worker.wait()


def clock_of(directory, ahead_s):
    """Return the environment of Python processes whose clock is wrong; times of files and the monotonic clock are right.

    `faketime` cannot do this: it fakes the monotonic clock for some functions of the C library and not for others, so
    that Python's waits last longer by the offset, or its sleeps fail.
    """
    (directory / "sitecustomize.py").write_text(WRONG_CLOCK.replace("AHEAD_S", str(ahead_s)))
    return {"PYTHONPATH": str(directory)} if ahead_s else {}


def busy_groups(study):
    return {worker["group"] for worker in study.status()["workers"] if worker["state"] == "busy"}


def there(host, study, command):
    words = host.command(str(BIN / "maestro-celery"), command, str(study.path))
    answer = subprocess.run(words, env=study.environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return " ".join((answer.stdout + answer.stderr).split())


def far_worker(study):
    return next((worker for worker in study.status()["workers"] if worker["group"] == "far"), {})


def attempts(records):
    """Return (begin, last sign of life, host, has ended) of each attempt by sample, in the order of their begins."""
    found = collections.defaultdict(dict)
    for line in records.read_text().splitlines():
        kind, sample, process, host, seconds = line.split()
        begin = found[int(sample)].get((process, host), (float(seconds),))[0]
        found[int(sample)][process, host] = (begin, float(seconds), host, kind == "end")
    return {sample: sorted(runs.values()) for sample, runs in found.items()}


def finish(study, records, restored_at):
    """Wait until a host works again whose link is restored, and until the end of the study."""
    wait_for(lambda: any(run[0] > restored_at and run[2] == "otherhost" for runs in attempts(records).values() for run in runs), "a sample on the host")
    records.with_name("enough").touch()
    study.await_end()


def lines_of(host, records):
    return [line for line in records.read_text().splitlines() if line.split()[3] == host.name]


def starts_of(host, records):
    return sum(line.startswith("start") for line in lines_of(host, records))


def assert_nothing_lost_or_twice(study, records):
    found = attempts(records)
    assert sorted(found) == list(range(1, COUNT + 1))
    for sample, runs in found.items():
        assert runs[-1][3], (sample, runs)
        assert all(first[1] < second[0] for first, second in itertools.pairwise(runs)), (sample, runs)
    (step,) = study.status()["steps"]
    assert step["samples"] == {"total": COUNT, "finished": COUNT, "failed": 0, "running": 0, "pending": 0}
    return found


def shown(study, *words):
    answer = study.command("maestro-celery", *words)
    return " ".join((answer.stdout + answer.stderr).split())


def since_boot():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def has_far_worker(study):
    return any(worker["name"].startswith("far") for worker in study.status()["workers"])


def test_a_host_that_is_cut_off_with_its_files(mounting_host, start, records):
    """Given a host whose link is cut for longer than the limits, and is then restored.

    Then its samples end before they run elsewhere, nothing is lost, and the host works again after the cut.
    """
    # Longer samples than in the other tests, so that one of the two slots runs a sample when the link is cut.
    study = start(mounting_host, "threads", ticks=25)
    for command, answer in (("status", "cut RUNNING"), ("resume", "A conductor of the study")):
        assert answer in there(mounting_host, study, command)  # although sshfs has locks for each host alone
    before = starts_of(mounting_host, records)
    wait_for(lambda: starts_of(mounting_host, records) > before, "a sample that the cut will hit")
    mounting_host.cut()
    cut_at = since_boot()
    wait_for(lambda: not has_far_worker(study), "the silence of the host")
    assert "Worker group 'far' waits for its workers on otherhost" in shown(study, "explain", str(study.path))
    assert "far-1" not in shown(study, "workers", str(study.path), "--list")
    time.sleep(max(0.0, CUT_S - (since_boot() - cut_at)))
    mounting_host.restore()
    finish(study, records, restored_at=since_boot())

    assert study.worker.wait(PATIENCE_S) == 0
    found = assert_nothing_lost_or_twice(study, records)
    assert any(len(runs) == 2 for runs in found.values())


def test_a_study_is_cancelled_while_a_host_is_cut_off(mounting_host, start, records):
    """Given a host that is cut off, when the study is cancelled, then the samples of the host end within their limit.

    The workers of the host leave when it sees the request.
    """
    study = start(mounting_host, "threads", ticks=500)
    wait_for(lambda: lines_of(mounting_host, records), "a sample on the host, which is busy a moment before")
    mounting_host.cut()
    cut_at = since_boot()
    answer = study.command("maestro", "cancel", str(study.path), "-y")
    assert answer.returncode == 0, answer.stderr
    wait_for(lambda: set(study.states().values()) == {"CANCELLED"}, "the end of the study")
    wait_for(lambda: since_boot() - cut_at > SILENCE_LIMIT_S + 5, "the limit of the host")
    lines = lines_of(mounting_host, records)
    mounting_host.restore()

    study.worker.wait(PATIENCE_S)
    # They end after `HEARTBEAT_LIMIT_S`; from `SILENCE_LIMIT_S` on, they could run elsewhere. Those of this machine end
    # when the conductor has read the request.
    assert max(float(line.split()[-1]) for line in lines) < cut_at + SILENCE_LIMIT_S
    assert lines_of(mounting_host, records) == lines
    study.await_end()


def test_a_host_that_cannot_reach_the_broker(start, records):
    """Given a host with a clock an hour ahead that keeps its files, but is cut off from the broker.

    Then users can see this, the conductor does not count on its slots, and the host works again after the cut. The pace of
    the study and its times do not depend on the clock.
    """
    with OtherHost() as host:
        study = start(host, "prefork", ahead_s=3600)
        wait_for(lambda: len(attempts(records)) > 9, "some samples")
        assert not re.search(r"\d h", shown(study, "status", str(study.path)))
        host.cut()
        wait_for(lambda: {"name": "far-1", "state": "disconnected"}.items() <= far_worker(study).items(), "the cut")
        assert "far otherhost disconnected it cannot reach the broker" in shown(study, "status", str(study.path))
        assert "far-1 (disconnected: otherhost cannot reach the broker" in shown(study, "explain", str(study.path))
        assert "otherhost disconnected" in shown(study, "workers", str(study.path), "--list")
        sent = study.log().count(" again.")
        time.sleep(5)
        assert study.log().count(" again.") == sent
        host.restore()
        finish(study, records, restored_at=since_boot())

    found = assert_nothing_lost_or_twice(study, records)
    assert all(len(runs) == 1 for runs in found.values())
    assert study.worker.wait(PATIENCE_S) == 0
    (row,) = csv.DictReader((study.path / "status.csv").read_text().splitlines())
    assert row["Run Time"].startswith("0d:00h"), row
