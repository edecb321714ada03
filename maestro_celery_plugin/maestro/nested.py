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
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from maestro_celery_plugin import clock
from maestro_celery_plugin.config.groups import shared_groups
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.machine import machine_id
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.spec.session_names import SessionNames
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import DEPTH_LIMIT, Member, Members
from maestro_celery_plugin.study.session import SESSION_VARIABLE, STUDY_VARIABLE, Session
from maestro_celery_plugin.study.worker_identity import MARKER

__all__ = [
    "INHERITED",
    "find_parent",
    "first_member",
    "inherited_options",
    "join",
    "note_conductor",
    "request_conductor",
    "run_nested",
    "without_output",
]

LOGGER = logging.getLogger(__name__)

# The options of `maestro run` that a study hands on, by their name in the command line (maestro.py, `setup_argparser`).
INHERITED = ("sleeptime", "debug_lvl", "rlimit", "throttle", "attempts", "max_depth", "max_studies")
# The host looks for requests five times a second; on another node of NFS, it may see them a second later.
_HOST_LIMIT_S = 30.0
_WAIT_INTERVAL_S = 0.5
# After this time without a conductor, `-fg` waits no more: the host would have started another one.
_DEAD_LIMIT_S = 60.0


def find_parent() -> Member | None:
    """Return the study whose sample or step has started this process; None outside of a study."""
    path = os.environ.get(SESSION_VARIABLE)
    if not path or not Path(path).is_dir():
        return None
    members, root = Members(Path(path)).all(), os.environ.get(STUDY_VARIABLE)
    return next((member for member in members if member.root == root), members[0] if members else None)


def inherited_options() -> dict[str, int]:
    """Return the options that a study in this process inherits, by name; none outside of a study."""
    parent = find_parent()
    return parent.options if parent is not None else {}


def session_of_parent() -> Path:
    """Return the directory of the session whose sample or step has started this process."""
    return Path(os.environ[SESSION_VARIABLE])


def first_member(study_id: str, root: Path, settings: EnsembleSettings) -> Member:
    """Return the member that begins a session."""
    return Member(
        id=study_id,
        number=1,
        root=str(root),
        started_at=clock.now(),
        variables=dict(OPTIONS.overrides.variables),
        groups=shared_groups(settings),
        options=_options(),
        directory=str(Path.cwd()),
    ).of_this_process()


def note_conductor(study: Path, pid: int) -> None:
    """Store which process is the conductor of the first study, so that the study lives from its launch on."""
    members = Members(study / "merlin_info" / "session")
    with members.locked():
        for member in members.all():
            if member.state is MemberState.LAUNCHED:  # the conductor may have entered the session already
                process = ProcessId.of(pid)
                running = {"state": MemberState.RUNNING, "process": (process.pid, process.start)}
                members.change(member.id, machine=machine_id(), **running)


def _options() -> dict[str, int]:
    values = {name: getattr(OPTIONS.arguments, name, None) for name in INHERITED}
    return {name: value for name, value in values.items() if value is not None}


# --- the run ------------------------------------------------------------------------------------------


def run_nested(parent: Member, run: Callable[[Any], int], arguments: argparse.Namespace) -> int:
    """Run `maestro run` in a sample or step, without output; return its exit code.

    Raises:
        StudyError: an option cannot be used, or the study would wait for itself.
    """
    if arguments.broker or arguments.broker_host:
        raise StudyError("--broker: a study that another study starts uses the broker of that one; remove the option.")
    OPTIONS.waits, arguments.fg, OPTIONS.foreground = arguments.fg, False, False
    arguments.autoyes = arguments.autoyes or not arguments.autono  # nobody can answer
    OPTIONS.parent = parent
    _use_first_directory(parent, arguments)
    try:
        with without_output():
            code = run(arguments)
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
def without_output() -> Iterator[None]:
    """Suppress what Maestro prints and logs to the terminal; its log files stay, and errors of the plugin."""
    handlers = [
        handler
        for logger in (logging.root, *map(logging.getLogger, logging.root.manager.loggerDict))
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _withdraw() -> None:
    """Remove the member of a launch that has not started a conductor."""
    if OPTIONS.member is not None:
        with contextlib.suppress(OSError):
            Members(session_of_parent()).remove(OPTIONS.member.id)
        OPTIONS.member = None


# --- the member ---------------------------------------------------------------------------------------


def join(name: str, output_path: str, settings: EnsembleSettings | None) -> SessionNames | None:
    """Join the session as a member, with a directory of its own.

    Args:
        name: Name of the study.
        output_path: `OUTPUT_PATH` of its specification; empty without one.
        settings: The settings of its ensemble; None for a study without one.

    Returns:
        The names of its worker groups in the session; None for a study without an ensemble.

    Raises:
        StudyError: the session may have no further study.
    """
    parent, arguments, members = OPTIONS.parent, OPTIONS.arguments, Members(session_of_parent())
    if parent is None or arguments is None:
        raise AssertionError("no study above this one")
    with members.locked():
        known = members.all()
        _check_limits(parent, known, arguments)
        number = members.next_number()
        names = SessionNames(settings, [member.groups for member in known], number) if settings else None
        groups = shared_groups(names.settings) if names else {}
        directory = _own_directory(name, output_path, {member.root for member in known}, arguments)
        arguments.out = str(directory)
        OPTIONS.member = Member(
            id=f"{secrets.randbits(64):016x}",
            number=number,
            parent=parent.id,
            depth=parent.depth + 1,
            root=str(directory),
            started_at=clock.now(),
            started_by=_place(parent),
            variables=dict(OPTIONS.overrides.variables),
            groups=groups,
            options=_options(),
            directory=parent.directory,
            waits_in=_waiting_group(Session(session_of_parent()), groups, members) if OPTIONS.waits else "",
        ).of_this_process()
        members.write(OPTIONS.member)
    for old, new in names.renamed.items() if names else ():
        LOGGER.warning("Another study of the session has a different worker group '%s'; here it is '%s'.", old, new)
    return names


def _check_limits(parent: Member, known: list[Member], arguments: argparse.Namespace) -> None:
    """Check that a study may start another one.

    Raises:
        StudyError: the session is being stopped, or a limit is reached.
    """
    if Session(session_of_parent()).is_closed:
        raise StudyError(
            f"The session in '{session_of_parent()}' is being stopped, and no study starts in it; outside of it, "
            f"`env -u {SESSION_VARIABLE} maestro run ...` starts one."
        )
    depth = DEPTH_LIMIT if arguments.max_depth is None else arguments.max_depth
    if parent.depth + 1 > depth:
        raise StudyError(
            f"--max-depth: {depth} studies have started each other in a chain, which is the limit; correct the "
            "condition that ends the iteration, or launch the first study with a larger limit."
        )
    if arguments.max_studies is not None and len(known) >= arguments.max_studies:
        raise StudyError(
            f"--max-studies: the session has {len(known)} studies, which is the limit; correct the condition that ends "
            "the iteration, or launch the first study with a larger limit."
        )


def _own_directory(name: str, output_path: str, taken: set[str], arguments: argparse.Namespace) -> Path:
    """Return a directory that does not exist and that no other member has; a number follows where it is necessary.

    Maestro's names end with the time in seconds (maestro.py:404).
    """
    default = Path(output_path or ".", f"{name.replace(' ', '_')}_{clock.local_time('%Y%m%d-%H%M%S')}")
    wanted = Path(os.path.abspath(arguments.out or default))  # noqa: PTH100 (as Maestro does)
    found, number = wanted, 2
    while found.exists() or str(found) in taken:
        found, number = wanted.with_name(f"{wanted.name}_{number}"), number + 1
    return found


def _place(parent: Member) -> str:
    """Return where the study was started: the workspace of a step record or of a sample, below the study above it."""
    for place in (_directory_of_sample(), Path(os.environ.get("PWD", ""))):
        with contextlib.suppress(ValueError):
            return str(place.relative_to(parent.root))
    return ""


def _directory_of_sample() -> Path:
    """Return the directory with the script of this session of processes, which a worker begins for each sample.

    The script may have changed its own directory.
    """
    try:
        return Path(psutil.Process(os.getsid(0)).cmdline()[-1]).parent
    except (psutil.Error, IndexError):
        return Path()


# --- the conductor ------------------------------------------------------------------------------------


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


def _waiting_group(session: Session, groups: Mapping[str, Any], members: Members) -> str:
    """Return the worker group of the sample that waits for the study (`-fg`); empty without a worker.

    Raises:
        StudyError: the study would wait for ever, because samples that wait for their studies hold all slots that it
            needs.
    """
    worker = os.environ.get(MARKER, "").rpartition(":")[2]
    beats = session.heartbeats.all()
    group = next((beat.group for beat in beats if beat.name == worker), "")
    if group in groups:
        slots = sum(beat.slots for beat in beats if beat.group == group)
        waiting = sum(member.waits_in == group for member in members.living())
        if waiting + 1 >= slots:
            raise StudyError(
                f"-fg: the study needs the worker group '{group}', and samples that wait for their studies would hold "
                f"all its slots ({slots}); leave -fg out, or give the group more slots (`args: --concurrency N`)."
            )
    return group


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
    code = int(code_of(StatusReader(Path(member.root)).read(), is_to_end=True))
    if code:
        print(f"maestro: the study '{member.root}' has not finished well (code {code}).", file=sys.stderr)
    return code
