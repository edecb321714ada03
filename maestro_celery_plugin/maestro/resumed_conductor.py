"""The conductors around a resume: the end of one that cancels the study, and the start and the end of the new one."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Callable

from rich.console import Console

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import tail
from maestro_celery_plugin.maestro.conductor_program import conductor_program
from maestro_celery_plugin.report.exit_codes import StudyCode, code_of
from maestro_celery_plugin.report.live.progress_display import ProgressDisplay, is_live_terminal
from maestro_celery_plugin.report.live.warning_lines import WarningLines
from maestro_celery_plugin.report.model import StudyState
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.conductor_lock import has_conductor, is_ending
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = [
    "await_cancellation",
    "await_end",
    "await_release",
    "await_start",
    "conductor_log",
    "has_finished",
    "start_conductor",
]

_START_LIMIT_S = 30.0
# Time for which a resume waits for the end of a cancellation, first without a word.
_SILENT_WAIT_S = 5.0
_CANCELLATION_LIMIT_S = 120.0
# The file in the study for the output of the new conductor.
_LOG = "resumed.txt"
# Interval between two looks at whether a conductor that another process has started lives.
_RELEASE_INTERVAL_S = 0.5


def conductor_log(plan: StudyPlan) -> WarningLines:
    """Return what follows the warnings of a conductor that starts after this call."""
    return WarningLines(plan.root / _LOG)


def start_conductor(plan: StudyPlan, sleep_s: int) -> subprocess.Popen[bytes]:
    """Start a conductor in the background.

    Args:
        plan: The study.
        sleep_s: Seconds between two polls of Maestro.

    Raises:
        StudyError: there is no program `conductor`.
    """
    log = plan.root / _LOG
    with log.open("ab") as output:
        return subprocess.Popen(
            [conductor_program(), "-t", str(sleep_s), "-d", "2", str(plan.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def has_finished(plan: StudyPlan) -> bool:
    """Tell whether all steps have finished, and the last conductor has recorded the end of the study."""
    member = Members(plan.session).read(plan.id)
    has_ended = member is not None and member.state is MemberState.ENDED
    return has_ended and StatusReader(plan.root).read().state is StudyState.FINISHED


def await_start(plan: StudyPlan, process: subprocess.Popen[bytes]) -> None:
    """Wait until the new conductor holds the lock of the study, or has ended.

    Raises:
        StudyError: it has ended with an error.
    """

    def has_started() -> bool:
        return has_conductor(plan) or process.poll() is not None

    clock.wait_until(has_started, _START_LIMIT_S, interval_s=0.1)
    if process.poll() not in (None, 0, 2, 3):
        output = tail(plan.root / _LOG)
        raise StudyError(f"The conductor has ended with code {process.returncode}; its last lines:\n{output}")


def await_cancellation(plan: StudyPlan) -> None:
    """Wait for the end of a conductor that cancels its study: a user may resume it directly after `maestro cancel`.

    Raises:
        StudyError: the conductor does not end.
    """
    if not (has_conductor(plan) and is_ending(plan)):
        return
    if clock.wait_until(lambda: not has_conductor(plan), _SILENT_WAIT_S, interval_s=0.1):
        return
    print(
        "maestro-celery: note: the study is being cancelled, and its conductor has not ended yet; `resume` waits for "
        f"its end, at most {_CANCELLATION_LIMIT_S:.0f} s. Ctrl-C ends the wait; then resume later.",
        file=sys.stderr,
    )
    if not clock.wait_until(lambda: not has_conductor(plan), _CANCELLATION_LIMIT_S, interval_s=0.5):
        raise StudyError(
            f"The conductor of the study '{plan.root}' has not ended after its cancellation; `maestro-celery status "
            f"{plan.root}` shows what still runs. Resume the study when it has ended."
        )


def await_release(plan: StudyPlan) -> None:
    """Wait until no conductor has the study."""
    while has_conductor(plan):
        clock.sleep(_RELEASE_INTERVAL_S)


def await_end(plan: StudyPlan, wait: Callable[[], object], log: WarningLines | None = None) -> StudyCode:
    """Wait for the end of a conductor, or until the user does not wait any longer; return how the study is then.

    A terminal shows the progress, with the warnings of the conductor.

    Args:
        plan: The study.
        wait: Returns when the conductor has ended.
        log: Follows the warnings of the conductor; None for a conductor that another process has started.
    """
    has_display = is_live_terminal()
    try:
        with _display(plan, log) if has_display else contextlib.nullcontext():
            wait()
    except KeyboardInterrupt:  # the conductor has a session of its own, so it goes on
        root = shlex.quote(str(plan.root))
        print(
            f"The study goes on; `maestro-celery status --watch {root}` shows it, `maestro cancel {root}` ends it.",
            file=sys.stderr,
        )
    code = code_of(StatusReader(plan.root).read(), is_to_end=True)
    if code is not StudyCode.UNSUCCESSFUL or not has_display:  # the display says it as well
        _say_how_it_ended(plan, code)
    return code


def _display(plan: StudyPlan, log: WarningLines | None) -> ProgressDisplay:
    return ProgressDisplay(StatusReader(plan.root), Console(highlight=False), log=log)


def _say_how_it_ended(plan: StudyPlan, code: StudyCode) -> None:
    """Say why a study has not finished; the samples that have failed are not among the reasons."""
    study = shlex.quote(str(plan.root))
    if code is StudyCode.UNCONDUCTED:
        output = tail(plan.root / _LOG)
        print(
            f"maestro-celery: error: the conductor has ended before the study; its last lines:\n{output}",
            file=sys.stderr,
        )
    elif code is StudyCode.UNSUCCESSFUL:
        print(
            f"maestro-celery: the study has not finished; `maestro-celery explain {study}` says why.", file=sys.stderr
        )
