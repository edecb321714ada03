"""Maestro's conductor: the real coordinator, called as Maestro's loop calls it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.coordinator import for_study
from maestro_celery_plugin.errors import EnsembleError, LedgerError, StudyError
from maestro_celery_plugin.states import RecordState
from simulation import kernel as sim
from simulation.studies import Maestro, Study

__all__ = ["Conductor"]

_ENDS = {RecordState.FINISHED: "FINISHED", RecordState.FAILED: "FAILED", RecordState.CANCELLED: "CANCELLED"}
_SUBMIT_DELAYS_S = (1.0, 2.0, 4.0)


class Conductor:
    """One process that conducts the study.

    Args:
        world: The world.
        study: The study.

    Attributes:
        maestro: What Maestro knows in this process.
        coordinator: Its coordinator; None before it has begun.
        has_ended: Whether it has ended in order, with all step records ended.
    """

    def __init__(self, world: Any, study: Study) -> None:
        self._world, self._study = world, study
        self.maestro = Maestro(study.names)
        self.coordinator: Any = None
        self.has_ended = False
        self.jobs: dict[str, str] = {}
        node = sim.kernel.random.choice(world.homes)
        self.process = sim.kernel.process(node, "conductor", self._main)
        self.process.on_exit.append(lambda process: world.on_exit(process))

    def _main(self) -> int:
        try:
            self._conduct()
        except StudyError as error:
            sim.kernel.trace(f"conductor ends: {error}")
            return 1
        except (OSError, LedgerError) as error:
            sim.kernel.trace(f"conductor is interrupted: {error}")
            self._run_exit_handlers()
            return 1
        self._run_exit_handlers()
        self.has_ended, self._study.maestro = True, self.maestro
        return 0

    def _run_exit_handlers(self) -> None:
        for action in reversed(self.process.exit_handlers):
            action()

    def _conduct(self) -> None:
        maestro = self.maestro
        while True:
            if self._is_cancelled():
                maestro.is_cancelled = True
                if self.coordinator is not None:
                    self._cancel()
            if not maestro.is_cancelled:
                self._submit(maestro)
            self._poll(maestro)
            self._write_status(maestro)
            if maestro.is_over:
                return
            if self.coordinator is not None:
                self._wait()
            else:
                clock.sleep(self._world.profile.poll_s)

    def _is_cancelled(self) -> bool:
        """Tell whether a user has requested a cancellation; Maestro's own file operations have no errors here."""
        outside = self._world.files.outside
        request = str(self._study.plan.cancel_request)
        try:
            outside.unlink(request)
        except FileNotFoundError:
            return False
        return True

    def _cancel(self) -> None:
        try:
            self.coordinator.cancel(list(self.jobs.values()))
        except (EnsembleError, OSError) as error:
            sim.kernel.trace(f"cannot be cancelled now: {error}")

    def _wait(self) -> None:
        try:
            self.coordinator.wait(self._world.profile.poll_s)
        except (EnsembleError, OSError) as error:
            self._world.checks.fail(f"an error in the wait of the coordinator, which ends Maestro's conductor: {error}")
            raise

    def _submit(self, maestro: Any) -> None:
        for name in maestro.ready():
            if name in self.jobs:
                continue
            self._submit_one(maestro, name)

    def _submit_one(self, maestro: Any, name: str) -> None:
        for delay_s in (*_SUBMIT_DELAYS_S, None):
            try:
                if self.coordinator is None:
                    self.coordinator = for_study(self._study.plan)
                    self._study.maestro = maestro
                self.jobs[name] = self.coordinator.submit(self._study.manifests[name])
                maestro.submitted.add(name)
                break
            except StudyError:
                raise
            except (OSError, LedgerError):
                if delay_s is None:
                    raise
                clock.sleep(delay_s)
        self.coordinator.set_restarts(self.jobs[name], lambda: True)
        sim.kernel.trace(f"submitted {name}")

    def _poll(self, maestro: Any) -> None:
        for name, job in list(self.jobs.items()):
            if name in maestro.ended:
                continue
            try:
                state = self.coordinator.state(job)
            except (EnsembleError, OSError):
                continue
            if state is RecordState.TIMED_OUT:
                sim.kernel.trace(f"restart {name}")
                self._submit_one(maestro, name)
            elif state in _ENDS:
                sim.kernel.trace(f"{name} {state.name}")
                maestro.ended[name] = state.name
                self._world.on_record_end(self, name, state)

    def _write_status(self, maestro: Any) -> None:
        lines = [
            "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params"
        ]
        for name in maestro.names:
            state = maestro.ended.get(name, "RUNNING" if name in self.jobs else "INITIALIZED")
            lines.append(f"{name},--,{name}/x,{state},-,-,-,-,-,0,")
        path = self._study.plan.root / "status.csv"
        with contextlib.suppress(OSError):  # of Maestro itself, which would end
            Path(path).write_text("\n".join(lines) + "\n")
