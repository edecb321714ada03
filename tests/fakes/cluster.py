"""The simulated cluster behind the fake commands of batch systems; its jobs are real processes of this machine.

The directory in the environment variable `FAKE_CLUSTER` has the state of the cluster:

    jobs/<number>.json     the job; `submit` writes it first, then only its supervisor
    jobs/<number>.script   its script
    jobs/<number>.end      the reason to end it; a process that requests the end writes this file
    hold                   while this file exists, no job starts
    away                   while this file exists, the batch system does not answer
    busy                   while this file exists, the commands of LSF say that it is busy before they answer
    restarts               a number that changes when the batch system is started anew
    launches               one line of JSON for each parallel launch that has ended

Other environment variables:

    FAKE_NODES      number of nodes
    FAKE_CORES      cores of each node
    FAKE_GPUS       GPUs of each node
    FAKE_AFTER_S    seconds for which a job continues after the end of its script
    FAKE_MINUTE_S   seconds that a minute of a time limit lasts
    FAKE_GRACE_S    seconds between the signal for a process and SIGKILL
    FAKE_MEMORY_S   seconds after its end for which a job is listed
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MARKER = "FAKE_JOB"
_LOOK_S = 0.05


def number_of(name: str, default: float) -> float:
    """Return the number in an environment variable."""
    return float(os.environ.get(name, default))


def root() -> Path:
    """Return the directory of the cluster."""
    return Path(os.environ["FAKE_CLUSTER"])


@dataclasses.dataclass
class Job:
    """A job.

    Attributes:
        number: Its number, from 1.
        name: Its name.
        command: Its command line.
        cwd: Its working directory.
        environment: Its environment, without its marker.
        nodes: Its number of nodes.
        limit_s: Its time limit in seconds; None for no limit.
        out: File for its stdout.
        err: File for its stderr.
        queue: Its queue.
        signals: Signals that it receives before SIGKILL, by the reason of its end.
        signals_script: Whether only its script receives them, and not all its processes.
        impossible: Why it can never start; empty if it can.
        state: `pending`, `running`, `cleanup` or `ended`.
        why: Why the cluster has ended it: `timeout`, or the text of its `.end` file; empty if it ended by itself.
        code: Its exit code, as in `subprocess`; None if it has not started.
        started_at: Time of its start in Unix seconds.
        ended_at: Time of its end in Unix seconds.
    """

    number: int
    name: str
    command: list[str]
    cwd: str
    environment: dict[str, str]
    nodes: int = 1
    limit_s: float | None = None
    out: str = os.devnull
    err: str = os.devnull
    queue: str = ""
    signals: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    signals_script: bool = False
    impossible: str = ""
    state: str = "pending"
    why: str = ""
    code: int | None = None
    started_at: float = 0.0
    ended_at: float = 0.0

    @property
    def _path(self) -> Path:
        return root() / "jobs" / f"{self.number}.json"

    def store(self) -> None:
        """Write the job atomically."""
        partial = self._path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(dataclasses.asdict(self)))
        partial.replace(self._path)

    @property
    def end_request(self) -> Path:
        """The file that requests its end."""
        return self._path.with_suffix(".end")

    @property
    def is_listed(self) -> bool:
        """Whether the batch system still lists it."""
        return self.state != "ended" or time.time() - self.ended_at < number_of("FAKE_MEMORY_S", 3600)


def read(number: int | str) -> Job | None:
    """Return a job; None if the batch system does not list it."""
    try:
        job = Job(**json.loads((root() / "jobs" / f"{number}.json").read_text()))
    except OSError:
        return None
    return job if job.is_listed else None


def jobs() -> list[Job]:
    """Return all jobs that the batch system lists."""
    numbers = sorted(int(path.stem) for path in (root() / "jobs").glob("*.json") if path.stem.isdigit())
    return [job for job in map(read, numbers) if job is not None]


def new_number() -> int:
    """Claim a number that no other job has used."""
    directory = root() / "jobs"
    directory.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (directory / f"{number}.script").touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def submit(job: Job) -> None:
    """Start a job, or keep it pending while the cluster holds jobs."""
    job.store()
    subprocess.Popen(
        [sys.executable, __file__, str(job.number)],
        env={key: value for key, value in os.environ.items() if key != MARKER},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def supervise(number: int) -> None:
    """Run a job to its end."""
    job = read(number)
    assert job is not None
    while (root() / "hold").exists() and not job.end_request.exists():
        time.sleep(_LOOK_S)
    if job.impossible:
        job.why, job.code = "impossible", 1
    elif job.end_request.exists():
        job.why = job.end_request.read_text()
    else:
        _run(job)
    job.state, job.ended_at = "ended", time.time()
    job.store()


def _run(job: Job) -> None:
    mark = f"{root()}:{job.number}"
    with open(job.out, "ab") as out, open(job.err, "ab") as err:
        process = subprocess.Popen(
            job.command,
            cwd=job.cwd,
            env={**job.environment, MARKER: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    job.state, job.started_at = "running", time.time()
    job.store()
    while process.poll() is None and not job.why:
        if job.end_request.exists():
            job.why = job.end_request.read_text()
        elif job.limit_s is not None and time.time() - job.started_at > job.limit_s:
            job.why = "timeout"
        time.sleep(_LOOK_S)
    for number in job.signals.get(job.why.partition(":")[0], ()) if job.why else ():
        if job.signals_script:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        else:
            _signal_all(mark, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(number_of("FAKE_GRACE_S", 5))
    while any(_signal_all(mark, signal.SIGKILL)):  # no process outlives its job
        time.sleep(_LOOK_S)
    job.code = process.wait()
    if not job.why:
        _continue(job)
    job.state = "cleanup"
    job.store()


def _continue(job: Job) -> None:
    """Let a job run on after its script; a cancellation in this time ends it with SIGHUP."""
    end = time.time() + number_of("FAKE_AFTER_S", 0)
    while time.time() < end and not job.why:
        if job.end_request.exists():
            job.why, job.code = job.end_request.read_text(), -signal.SIGHUP
        time.sleep(_LOOK_S)


def is_away() -> bool:
    """Tell whether the batch system does not answer."""
    return (root() / "away").exists()


def restarts() -> str:
    """Return a text that changes when the batch system is started anew."""
    path = root() / "restarts"
    return path.read_text() if path.exists() else ""


def _signal_all(mark: str, number: int) -> list[int]:
    """Send a signal to every process of a job; return these processes."""
    found = list(_marked(mark))
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return found


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{MARKER}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if wanted in variables and state not in "ZX":
                yield int(entry.name)


def launch(tasks: Sequence[dict[str, str]], command: Sequence[str], limit_s: float | None = None, **facts: Any) -> int:
    """Run a command once for each task, in parallel; return the largest exit code.

    Args:
        tasks: Environment variables of each task, in addition to those of this process.
        command: The command line.
        limit_s: Time limit in seconds; None for no limit.
        facts: Further facts about this launch, for the file `launches`.
    """
    begin = time.time()
    processes = [subprocess.Popen(command, env={**os.environ, **task}) for task in tasks]

    def forward(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, forward)
    if limit_s is not None:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
    codes = [process.wait() for process in processes]
    note = {**facts, "tasks": len(tasks), "command": list(command), "begin": begin, "end": time.time()}
    with (root() / "launches").open("a") as file:
        file.write(json.dumps(note) + "\n")
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    supervise(int(sys.argv[1]))
