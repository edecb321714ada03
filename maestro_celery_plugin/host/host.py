"""The host of a session: it keeps the private broker, and starts the conductors of the studies that others start.

    python -m maestro_celery_plugin.host SESSION

It runs where the first study was launched, outlives the conductor of each study, and ends with the last study: when the
session has a request to stop, or when nothing has used it for `IDLE_LIMIT_S` seconds. So it also ends if the conductor
was killed. Requests are files in the session (`study/members.py`), so that they come from each node that sees them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.server import PrivateServer
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.files import refresh_directory
from maestro_celery_plugin.host.conductors import Conductors
from maestro_celery_plugin.host.start import write_host
from maestro_celery_plugin.processes import ProcessId, exit_at_once, forget_variable
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import MARKER, PROCESS_MARKER

__all__ = ["main"]

IDLE_LIMIT_S = 30.0
_INTERVAL_S = 0.2
# Interval between two looks at the files that other nodes write, and that NFS would show to this one much later.
_LOOK_INTERVAL_S = 1.0


class Host:
    """The host of a session.

    Args:
        session: The session.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._members = session, Members(session.path)
        self._conductors = Conductors(session, self._members)
        self._server: PrivateServer | None = None
        self._ending = False
        self._looked_at = float("-inf")
        self._has_members = False
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._ending = True
        if self._server is not None:
            self._server.request_end()

    def run(self) -> None:
        """Keep the session until nothing needs it."""
        idle_since = clock.monotonic()
        try:
            while not self._ending and self._session.path.exists():
                self._keep_server()
                self._look()
                if self._is_used():
                    idle_since = clock.monotonic()
                elif self._session.stop_requested or clock.monotonic() - idle_since > IDLE_LIMIT_S:
                    break
                select.select([self._wake], [], [], _INTERVAL_S)
        finally:
            if self._server is not None:
                self._server.stop()

    def _keep_server(self) -> None:
        if self._server is None and self._session.wants_private_broker:
            self._server = PrivateServer(self._session)
        if self._server is not None:
            self._server.keep()

    def _look(self) -> None:
        """Start the conductors that are requested, and those that have died."""
        now = clock.monotonic()
        if now - self._looked_at > _LOOK_INTERVAL_S:
            self._looked_at = now
            with contextlib.suppress(OSError):
                refresh_directory(self._session.path / "studies")
        if self._members.have_changed() or now == self._looked_at:
            with contextlib.suppress(OSError, EnsembleError):  # the next look tries again
                self._look_at_members()

    def _look_at_members(self) -> None:
        members = self._members.all()
        self._has_members = any(self._members.is_alive(member) for member in members)
        self._conductors.look(members)
        if members and not self._session.stop_requested and not any(map(self._is_open, members)):
            with self._members.locked():  # a study may be resumed at this moment
                if not any(map(self._is_open, self._members.all())):
                    self._session.request_stop()  # the last one had no conductor of an ensemble that would do it

    def _is_open(self, member: Member) -> bool:
        """Whether a member has not ended; a launch that was killed counts as ended."""
        if member.state is MemberState.LAUNCHED:
            return self._members.is_alive(member)
        return member.state is not MemberState.ENDED

    def _is_used(self) -> bool:
        """Whether a study lives, or a client is connected to the private broker."""
        if self._has_members:
            return True
        if self._server is None:
            return False
        return bool(self._server.count_again() if self._session.stop_requested else self._server.clients)


def main() -> None:
    """Run the host of the session that the command line names; end at once if another one runs."""
    session = Session(Path(sys.argv[1]))
    for name in (MARKER, PROCESS_MARKER):  # otherwise this process would end with the sample that has started it
        forget_variable(name)
    try:
        with FileLock(session.path / "host.lock").acquire(timeout=0):
            write_host(session, ProcessId.of(os.getpid()))
            Host(session).run()
    except Timeout:
        print(f"The session '{session.path}' has a host already.", file=sys.stderr)
    exit_at_once(0)
