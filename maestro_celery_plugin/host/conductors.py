"""The conductors that the host of a session starts: on request, and once again if one has died."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.machine import is_this_machine, machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.plan import CANCEL_REQUEST
from maestro_celery_plugin.study.session import Session

__all__ = ["Conductors"]

# How often the conductor of a study is started again after its death.
RESTART_LIMIT = 1
# A dead conductor is started again after this time: somebody may be ending the whole study.
RESTART_DELAY_S = 3.0
_RESUME = "from maestro_celery_plugin.cli import main; main()"
_CANCEL = "import sys; from maestro_celery_plugin.maestro.cancel import cancel_abandoned; cancel_abandoned(sys.argv[1])"


class Conductors:
    """Starts and watches conductors.

    Args:
        session: The session.
        members: Its members.
    """

    def __init__(self, session: Session, members: Members) -> None:
        self._session, self._members = session, members
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._dead_since: dict[str, float] = {}
        self._resuming: list[subprocess.Popen[bytes]] = []
        self._cancelled: set[str] = set()

    def look(self, members: Iterable[Member]) -> None:
        """Start the conductors that members request, and those that have died."""
        self._resuming = [process for process in self._resuming if process.poll() is None]
        self._note_ends()
        for member in members:
            if self._session.is_closed:
                return
            if member.state is MemberState.REQUESTED:
                self._start_requested(member)
            elif member.state is MemberState.RUNNING:
                self._restart_dead(member)

    def _start_requested(self, member: Member) -> None:
        """Start the conductor of a member, and tell the launch, which waits, if this is impossible."""
        stored = self._members.read(member.id)
        if stored is None or stored.state is not MemberState.REQUESTED:
            return  # it has just ended
        try:
            if member.id not in self._children:
                self._start(member)
        except (OSError, EnsembleError) as error:
            _say(f"The conductor of '{member.root}' cannot be started: {error}")
            with contextlib.suppress(OSError):
                self._members.change(member.id, state=MemberState.ENDED, problem=str(error), ended_at=clock.now())
            return
        with contextlib.suppress(OSError, EnsembleError):  # the next look tries again: it must not start another one
            self._note_start(member)

    def _start(self, member: Member) -> None:
        environment = {**os.environ, **self._members.read_environment(member.id)}
        with Path(member.log).open("wb") as output:
            process = subprocess.Popen(
                list(member.conductor),
                cwd=member.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children[member.id] = process

    def _note_start(self, member: Member) -> None:
        own = ProcessId.of(self._children[member.id].pid)
        with self._members.locked():
            now = self._members.read(member.id)
            if now is not None and now.state is MemberState.REQUESTED:  # the conductor may have entered already
                self._members.change(
                    member.id, state=MemberState.RUNNING, process=(own.pid, own.start), machine=machine_id()
                )

    def _note_ends(self) -> None:
        """Note the end of studies without an ensemble; the conductor of an ensemble does that itself."""
        for study_id, process in list(self._children.items()):
            if process.poll() is None:
                continue
            with contextlib.suppress(OSError, EnsembleError):  # the next look tries again
                self._note_end(study_id)
                del self._children[study_id]

    def _note_end(self, study_id: str) -> None:
        member = self._members.read(study_id)
        has_run = member is not None and member.state in (MemberState.REQUESTED, MemberState.RUNNING)
        if member is not None and has_run and not member.lock.parent.is_dir():
            self._members.change(study_id, state=MemberState.ENDED, ended_at=clock.now())

    def _restart_dead(self, member: Member) -> None:
        """Let a study go on whose conductor on this machine was killed."""
        if self._members.is_alive(member) or not is_this_machine(member.machine) or not member.lock.exists():
            self._dead_since.pop(member.id, None)
            return
        since = self._dead_since.setdefault(member.id, clock.monotonic())
        if clock.monotonic() - since < RESTART_DELAY_S or not (Path(member.root) / "batch.info").exists():
            return
        if (Path(member.root) / CANCEL_REQUEST).exists():
            self._cancel(member)
            return
        if member.restarts >= RESTART_LIMIT:
            return
        self._members.change(member.id, restarts=member.restarts + 1)
        _say(f"The conductor of '{member.root}' has died; another one goes on with the study.")
        polls = ["-s", str(member.options["sleeptime"])] if "sleeptime" in member.options else []
        self._run(_RESUME, "resume", *polls, member.root)

    def _cancel(self, member: Member) -> None:
        """Cancel a study whose conductor has died before it has read the request; a resume would forget the request."""
        if member.id not in self._cancelled:
            self._cancelled.add(member.id)
            _say(f"The conductor of '{member.root}' has died before it has cancelled the study, which is done now.")
            self._run(_CANCEL, member.root)

    def _run(self, program: str, *arguments: str) -> None:
        self._resuming.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                cwd="/",  # Python searches the current directory for modules first
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )


def _say(text: str) -> None:
    print(f"{clock.local_time('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)
