"""The simulated samples: how long each runs, how it ends, and the truth about all of its attempts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from simulation import kernel as sim
from simulation.kernel import ENDLESS, Kernel, Process
from simulation.profiles import Profile
from simulation.threads import _Waiters

__all__ = ["Attempt", "SampleKey", "Samples"]

SampleKey = tuple[str, int]


@dataclasses.dataclass
class Attempt:
    """One execution of one sample.

    Attributes:
        code: Its exit code; None while it runs.
        node_boot: The boot of its node.
        killed_worker: Whether it has killed its worker.
        was_ended: Whether a signal has ended it.
        was_signalled: Whether it has received a signal, which it may have ignored.
    """

    key: SampleKey
    number: int
    restart: bool
    begin: float
    process: Process
    worker: Process
    node: str
    end: float = ENDLESS
    code: int | None = None
    killed_worker: bool = False
    was_ended: bool = False
    was_signalled: bool = False


class _Popen:
    """Stands for `subprocess.Popen`."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.pid = attempt.process.pid
        self._waiters = _Waiters()
        attempt.process.on_exit.append(lambda _: self._waiters.notify_all())

    @property
    def returncode(self) -> int | None:
        return self._attempt.code

    def wait(self) -> int:
        while self._attempt.code is None:
            self._waiters.wait()
        return self._attempt.code


class Samples:
    """All samples of a study.

    Args:
        kernel: The kernel.
        profile: The world.

    Attributes:
        attempts: All attempts at each sample, in their order.
        scripts: How each sample ends, by attempt: exit codes, "kill" for one that kills its worker. The last one
            repeats.
        violations: What must not have happened.
    """

    def __init__(self, kernel: Kernel, profile: Profile) -> None:
        self._kernel, self._profile, self._random = kernel, profile, kernel.stream("samples")
        self.attempts: dict[SampleKey, list[Attempt]] = {}
        self.scripts: dict[SampleKey, list[Any]] = {}
        self.durations: dict[SampleKey, float] = {}
        self._of_directory: dict[str, SampleKey] = {}
        self.on_begin: Any = None
        self.violations: list[str] = []

    def add(self, record: str, manifest: Any) -> None:
        """Add the samples of a step record."""
        rng, profile = self._random, self._profile
        for sample in range(manifest.samples):
            key = record, sample
            path = manifest.paths.of(sample)
            self._of_directory[str(Path(manifest.workspace, path)) if path != "." else manifest.workspace] = key
            self.attempts[key] = []
            self.durations[key] = min(120.0, rng.expovariate(1 / profile.mean_s))
            if rng.random() < profile.long_share:
                self.durations[key] = rng.uniform(20, 90)
            self.scripts[key] = self._script(rng)
        for sample in range(min(profile.poison, manifest.samples)):
            self.scripts[record, sample] = ["kill"]

    def _script(self, rng: Any) -> list[Any]:
        profile, value = self._profile, rng.random()
        if value < profile.fail_share:
            return [rng.choice((1, 2, 101, 103, 255))]
        value -= profile.fail_share
        if value < profile.hard_share:
            return [rng.choice((102, 106))]
        value -= profile.hard_share
        if value < profile.stop_share:
            return [105]
        value -= profile.stop_share
        if value < profile.request_share:
            asked = [
                rng.choice((100, 104)) for _ in range(rng.choice((1, 2, profile.max_retries, profile.max_retries + 1)))
            ]
            return [*asked, 0]
        value -= profile.request_share
        if value < profile.killer_share:
            return ["kill"] * rng.choice((1, 2)) + [0]
        return [0]

    def popen(self, args: list[str], cwd: str, **_: Any) -> _Popen:
        """Start an attempt."""
        worker = sim.current()
        assert worker is not None
        key = self._of_directory[cwd]
        attempts = self.attempts[key]
        process = self._kernel.process(worker.node, f"sample {key[0]}/{key[1]}")
        process.marker = worker.locals["mark"]
        attempt = Attempt(
            key,
            len(attempts),
            args[-1].endswith(".restart.sh"),
            self._kernel.thread_now,
            process,
            worker,
            worker.node.machine,
        )
        self.on_begin(attempt)
        attempts.append(attempt)
        process.on_exit.append(lambda ended: self._ended(attempt, ended.code))
        process.on_signal = lambda number: self._on_signal(attempt, number)
        # Its script counts the attempts that have really ended by themselves or have killed their worker.
        done = sum(1 for one in attempts[:-1] if not one.was_ended)
        script = self.scripts[key]
        step = script[min(done, len(script) - 1)]
        duration_s = self.durations[key] * (0.5 if attempt.restart else 1.0)
        self._kernel.call(duration_s, lambda: self._finish(attempt, step))
        return _Popen(attempt)

    def _finish(self, attempt: Attempt, step: Any) -> None:
        if attempt.code is not None:
            return
        if attempt.process.paused_until > self._kernel.now:
            self._kernel.call(attempt.process.paused_until - self._kernel.now, lambda: self._finish(attempt, step))
            return
        if step == "kill":
            if attempt.worker.is_alive:
                attempt.killed_worker, attempt.worker.killer = True, attempt
                self._kernel.trace(f"{attempt.process} kills its worker")
                self._kernel.exit(attempt.worker, -9)
            self._kernel.exit(attempt.process, -9)
        else:
            self._kernel.exit(attempt.process, step)

    def _on_signal(self, attempt: Attempt, number: int) -> None:
        """Most samples end soon after SIGTERM; some ignore it."""
        attempt.was_signalled = True
        if attempt.key[1] % 7 == 3:
            return
        self._kernel.sleep(self._random.random() * 0.2)
        attempt.was_ended = True
        self._kernel.kill(attempt.process, number)

    def _ended(self, attempt: Attempt, code: int | None) -> None:
        attempt.code, attempt.end = code, self._kernel.now
        attempt.was_ended = attempt.was_ended or (code in (-9, -15) and not attempt.killed_worker)

    def kills(self, key: SampleKey, before: Attempt) -> int:
        """Return how often a sample had killed its worker before an attempt at it."""
        return sum(one.killed_worker for one in self.attempts[key][: before.number])

    def running(self) -> list[Attempt]:
        """Return the attempts that run."""
        return [a for attempts in self.attempts.values() for a in attempts if a.code is None]

