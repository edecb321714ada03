"""The processes of a study and of the studies that it has started, and the commands that users type meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from support import Study

from chaos.broker import PAUSES_S
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.session import Session

__all__ = ["Parts"]

_RESUME_TRIES = 30
_OF_SLURM = ("srun", "slurmstepd", "sbatch", "squeue", "scancel")


class Parts:
    """The parts of a study.

    Args:
        study: The study; all studies that it starts have directories beside its own, whose names begin with its name.
        choose: Random choices.

    Attributes:
        complaints: A sentence for each command that has failed and must not.
    """

    def __init__(self, study: Study, choose: random.Random) -> None:
        self.study, self._choose = study, choose
        self.complaints: list[str] = []

    @property
    def session(self) -> Session:
        return Session(self.study.path / "merlin_info" / "session")

    def studies(self) -> list[Study]:
        """Return the study and those that it has started; a launch that was interrupted is left out."""
        members = [one for one in Members(self.session.path).all()[1:] if one.state is not MemberState.LAUNCHED]
        started = [Study(Path(one.root), self.study.environment) for one in members if one.root]
        return [self.study, *(one for one in started if (one.path / "merlin_info").is_dir())]

    # --- processes ---

    def processes(self, *parts: str) -> list[psutil.Process]:
        """Return the processes of these parts; a process in a directory of the studies that is no other part is a sample."""
        return [process for process in psutil.process_iter() if self._part_of(process) in parts]

    def _part_of(self, process: psutil.Process) -> str | None:
        """Return the part of the study that a process belongs to; None for a process of anybody else."""
        root = str(self.study.path)
        try:
            line = " ".join(process.cmdline())
            is_own = root in line or process.cwd().startswith(root)
            if not is_own or process.pid == os.getpid() or "bin/maestro" in line or process.status() == "zombie":
                return None
            if process.name() in _OF_SLURM or "slurm_script" in line:
                return "step"
            if "maestro_celery_plugin.worker" in line:
                above = process.parent()
                is_child = above is not None and "maestro_celery_plugin.worker" in " ".join(above.cmdline())
                return "worker" if is_child else "supervisor"
        except psutil.Error:
            return None
        names = {"bin/conductor": "conductor", "maestro_celery_plugin.host": "host", "-server": "server"}
        return next((part for text, part in names.items() if text in line), "sample")

    def kill(self, *parts: str) -> None:
        _send(signal.SIGKILL, self.processes(*parts))

    @contextlib.contextmanager
    def stopped(self, *parts: str) -> Iterator[None]:
        """Stop processes, and let them go on at the end."""
        # The same ones go on: a process that looked like a worker may have become a sample before it stopped.
        processes = self.processes(*parts)
        _send(signal.SIGSTOP, processes)
        try:
            yield
        finally:
            _send(signal.SIGCONT, processes)

    def pause(self, *parts: str) -> None:
        with self.stopped(*parts):
            time.sleep(self._choose.choice(PAUSES_S))

    def kill_one_sample(self) -> None:
        for process in self.processes("sample"):
            with contextlib.suppress(psutil.Error):
                if process.name() == "bash":
                    process.kill()
                    return

    # --- commands ---

    def command(self, *words: str) -> None:
        """Run a command that must succeed."""
        answer = self.study.command(*words)
        if answer.returncode or "Traceback" in answer.stderr:
            self.complaints.append(f"{' '.join(words)}: {answer.stdout} {answer.stderr}")

    def resume(self, *studies: Study) -> None:
        """Resume studies; try again for some seconds, because the last conductor may not have ended yet."""
        for study in studies or self.studies():
            self._resume(study)

    def _resume(self, study: Study) -> None:
        for _ in range(_RESUME_TRIES):
            answer = study.command("maestro-celery", "resume", "-s", "1", str(study.path))
            if "Traceback" in answer.stderr:
                self.complaints.append(answer.stderr)
            if answer.returncode == 0 or study.processes("bin/conductor") or _is_whole(study.status()):
                return
            time.sleep(0.5)
        self.complaints.append(f"resume of {study.path.name} is refused: {answer.stderr}")

    def revive(self) -> int:
        """Resume the studies that have ended and not finished; return how many studies have not finished yet."""
        unfinished = 0
        for study in self.studies():
            status = study.status()
            if not _is_whole(status):
                unfinished += 1
                if status["state"] not in ("RUNNING", "PENDING"):
                    self._resume(study)
        return unfinished

    def cancel_and_resume(self) -> None:
        """Cancel one of the studies, and resume it."""
        study = self._choose.choice(self.studies())
        self.command("maestro", "cancel", "-y", str(study.path))
        self._resume(study)


def _is_whole(status: dict[str, Any]) -> bool:
    """Tell whether a study has finished, with all samples that were added."""
    return status["state"] == "FINISHED" and not status["waiting_additions"]


def _send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
