"""The end of a whole session: all its studies, workers and allocations, and its host."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.host.start import host_of
from maestro_celery_plugin.machine import is_this_machine
from maestro_celery_plugin.maestro.cancel import end_leftovers
from maestro_celery_plugin.maestro.cancel_report import CancelReport
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.plan import CANCEL_REQUEST, StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["stop_session"]

# Time in which the conductors cancel their studies by themselves.
CANCEL_LIMIT_S = 9.0
# Time in which the host ends by itself, after the last worker.
_HOST_LIMIT_S = 20.0
_END_LIMIT_S = 2.0


def stop_session(session: Session) -> CancelReport:
    """End all studies of a session; return what was done.

    No further study starts. Each conductor is asked to cancel its study, and is ended if it does not within
    `CANCEL_LIMIT_S`; then workers, allocations and the host end.

    Raises:
        OSError: the session cannot be read or changed.
        StudyError: another process does not unlock the list of studies.
    """
    members, report = Members(session.path), CancelReport()
    with members.locked():
        session.close()
        living = members.living()
    for member in living:
        with report.part(f"The study '{member.root}' cannot be asked to end"):
            if member.root and Path(member.root).is_dir():
                (Path(member.root) / CANCEL_REQUEST).touch()
    clock.wait_until(lambda: not _conducted(members), CANCEL_LIMIT_S, interval_s=0.1)
    for member in living:
        _end(member, members, report)
    with report.part("The host of the session cannot be asked to end"):
        session.request_stop()
        clock.wait_until(lambda: host_of(session) is None, _HOST_LIMIT_S, interval_s=0.1)
    for member in members.all():
        with report.part(f"What the study '{member.root}' has left cannot be ended"):
            for plan in _plan_of(member):
                end_leftovers(plan, report)
    with report.part("The host of the session cannot be ended"):
        host = host_of(session)
        if host is not None:
            host.signal(signal.SIGTERM)
            clock.wait_until(lambda: not host.is_alive, _END_LIMIT_S)
    return report


def _conducted(members: Members) -> list[Member]:
    return [member for member in members.living() if member.state is MemberState.RUNNING]


def _end(member: Member, members: Members, report: CancelReport) -> None:
    """End the conductor of a study that has not cancelled it, and note the end of the study."""
    now = members.read(member.id)
    if now is None:
        return
    if members.is_alive(now):
        if not is_this_machine(now.machine):
            report.add_left(f"The conductor of '{now.root}' runs on another machine, and is asked to end.")
            return
        process = ProcessId(*now.process)
        for number in (signal.SIGTERM, signal.SIGKILL):
            process.signal(number)
            if clock.wait_until(lambda: not process.is_alive, _END_LIMIT_S):
                break
    members.change(member.id, state=MemberState.ENDED, ended_at=clock.now())
    report.add(f"Cancelled '{member.root}'.")


def _plan_of(member: Member) -> Iterator[StudyPlan]:
    """Yield the plan of a member with an ensemble."""
    with contextlib.suppress(EnsembleError):
        yield StudyPlan.read(Path(member.root))
