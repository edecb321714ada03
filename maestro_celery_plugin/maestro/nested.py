"""A study that a sample or a step of another study starts: `maestro run` in there joins the session of that study.

The host of the session starts its conductor, because this process and its machine may end with the sample. Relative
paths of its output are relative to the directory in which the first study was launched, and options that are not given
are those of the study above it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.maestro.foreground_log import is_no_level_test
from maestro_celery_plugin.maestro.joining import AlreadyStartedError, session_of_parent
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.conductor_lock import has_conductor
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["request_conductor", "run_nested", "without_output"]

# The host looks for requests five times a second; on another node of NFS, it may see them a second later.
_HOST_LIMIT_S = 30.0
_WAIT_INTERVAL_S = 0.5
# After this time without a conductor, `-fg` waits no more: the host would have started another one.
_DEAD_LIMIT_S = 30.0


def run_nested(parent: Member, run: Callable[[Any], int], arguments: argparse.Namespace) -> int:
    """Run `maestro run` in a sample or step without output, or in a shell with `--session`; return its exit code.

    Raises:
        StudyError: an option cannot be used, or the study would wait for itself.
    """
    if arguments.broker or arguments.broker_host:
        raise StudyError("--broker: a study that another study starts uses the broker of that one; remove the option.")
    # A dry run does not join the session; its conductor only writes scripts, and must not end with the sample before.
    OPTIONS.waits, arguments.fg, OPTIONS.foreground = arguments.fg and not arguments.dry, arguments.dry, False
    OPTIONS.parent, is_by_user = parent, arguments.session is not None
    if not is_by_user:
        arguments.autoyes = arguments.autoyes or not arguments.autono  # nobody can answer
        _use_first_directory(parent, arguments)
    try:
        with contextlib.nullcontext() if is_by_user and not arguments.quiet else without_output():
            code = run(arguments)
    except AlreadyStartedError as note:
        print(f"maestro: {note}", file=sys.stderr)
        code = 0
    except BaseException:
        _withdraw()
        raise
    if code or arguments.autono or OPTIONS.dry_run:
        _withdraw()
    elif OPTIONS.waits and OPTIONS.member is not None:
        return _await_end(OPTIONS.member.id)
    return code


def _use_first_directory(parent: Member, arguments: argparse.Namespace) -> None:
    """Go to the directory of the first launch; the files that the command line names stay those of this directory."""
    for name in ("specification", "pgen"):
        if getattr(arguments, name):
            setattr(arguments, name, os.path.abspath(getattr(arguments, name)))  # noqa: PTH100 (as Maestro does)
    try:
        os.chdir(parent.directory)
    except OSError as cause:
        raise StudyError(
            f"The directory '{parent.directory}', in which the first study was launched, cannot be used here "
            f"({cause.strerror}), and relative paths of the output are relative to it; use a directory that all nodes "
            "have."
        ) from cause


@contextlib.contextmanager
def without_output(*, with_warnings: bool = False) -> Iterator[None]:
    """Suppress what Maestro prints and logs to the terminal; its log files stay, and errors of the plugin.

    Args:
        with_warnings: Whether log lines from the level of warnings stay.
    """
    handlers = [
        handler
        for logger in (logging.root, *map(logging.getLogger, logging.root.manager.loggerDict))
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(max(handler.level, logging.WARNING) if with_warnings else logging.CRITICAL + 1)
        handler.addFilter(is_no_level_test)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
            handler.removeFilter(is_no_level_test)


def _withdraw() -> None:
    """Remove the member of a launch that has not asked for a conductor."""
    if OPTIONS.member is not None:
        members = Members(session_of_parent())
        member = members.read(OPTIONS.member.id)
        if member is None or member.state is MemberState.LAUNCHED:
            with contextlib.suppress(OSError):
                members.remove(OPTIONS.member.id)
        OPTIONS.member = None


def request_conductor(words: list[str], log: str) -> None:
    """Ask the host of the session to start the conductor, and wait until it has.

    Args:
        words: The command.
        log: The file for its output.

    Raises:
        StudyError: the host does not answer.
    """
    member, members = OPTIONS.member, Members(session_of_parent())
    if member is None:
        raise AssertionError("the study has not joined the session")
    OPTIONS.is_conducted = True
    members.change(member.id, state=MemberState.REQUESTED, conductor=tuple(words), log=log)

    def has_started() -> bool:
        now = members.read(member.id)
        return now is None or now.state is not MemberState.REQUESTED

    if not clock.wait_until(has_started, _HOST_LIMIT_S):
        session = shlex.quote(str(session_of_parent()))
        raise StudyError(
            f"The study '{member.root}' waits for the host of its session, which does not answer; on the machine of "
            f"the first launch, `maestro-celery session resume {session}` starts another one."
        )
    started = members.read(member.id)
    if started is not None and started.problem:
        raise StudyError(f"The host of the session cannot start the conductor of '{member.root}': {started.problem}")


def _await_end(study_id: str) -> int:
    """Wait for the end of a study; return the exit code of `maestro run -fg`."""
    from maestro_celery_plugin.report.exit_codes import StudyCode, code_of
    from maestro_celery_plugin.report.reader import StatusReader

    members, alive_at = Members(session_of_parent()), clock.monotonic()
    while (member := members.read(study_id)) is not None and member.state is not MemberState.ENDED:
        if members.is_alive(member):
            alive_at = clock.monotonic()
        elif clock.monotonic() - alive_at > _DEAD_LIMIT_S:
            print(
                f"maestro: -fg: no conductor runs the study '{member.root}' any more; `maestro-celery session resume "
                f"{shlex.quote(member.root)}` lets it go on.",
                file=sys.stderr,
            )
            return int(StudyCode.UNCONDUCTED)
        clock.sleep(_WAIT_INTERVAL_S)
    if member is None or not member.lock.parent.is_dir():
        return 0
    plan = StudyPlan.read(Path(member.root))
    clock.wait_until(lambda: not has_conductor(plan), _DEAD_LIMIT_S, interval_s=0.1)  # it leaves before it ends
    code = int(code_of(StatusReader(Path(member.root)).read(), is_to_end=True))
    if code:
        print(f"maestro: the study '{member.root}' has not finished well (code {code}).", file=sys.stderr)
    return code
