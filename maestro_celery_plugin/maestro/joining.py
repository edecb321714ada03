"""The member of a session that a launch becomes: the first one, or one of a session that it joins."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from maestro_celery_plugin import clock
from maestro_celery_plugin.config.groups import shared_groups
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.machine import is_this_machine, machine_id
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.spec.session_names import SessionNames
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import DEPTH_LIMIT, Member, Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import AGAIN_VARIABLE, SESSION_VARIABLE, STUDY_VARIABLE, Session
from maestro_celery_plugin.study.worker_identity import MARKER

__all__ = [
    "AlreadyStartedError",
    "find_parent",
    "first_member",
    "inherited_options",
    "join",
    "note_conductor",
    "session_of_parent",
    "use_session_of",
]


class AlreadyStartedError(StudyError):
    """An earlier attempt of the sample or step has started the study."""


# The options of `maestro run` that a study hands on, by their name in the command line (maestro.py, `setup_argparser`).
_INHERITED = ("sleeptime", "debug_lvl", "rlimit", "throttle", "attempts", "max_depth", "max_studies")


# --- the study above ----------------------------------------------------------------------------------


def find_parent() -> Member | None:
    """Return the study whose sample or step has started this process; None outside of a study."""
    path = os.environ.get(SESSION_VARIABLE)
    if not path or not Path(path).is_dir():
        return None
    members, root = Members(Path(path)).all(), os.environ.get(STUDY_VARIABLE)
    return next((member for member in members if member.root == root), members[0] if members else None)


def use_session_of(study: Path) -> None:
    """Let this launch join the session of a study that runs, as if one of its samples had started it.

    Raises:
        StudyError: there is no such study, or none of its session runs.
    """
    session = StudyPlan.read(study.absolute()).session
    if not Members(session).living():
        raise StudyError(f"--session: no study of the session of '{study}' runs; leave the option out.")
    os.environ.update({SESSION_VARIABLE: str(session), STUDY_VARIABLE: str(study.absolute())})


def inherited_options() -> dict[str, int]:
    """Return the options that a study in this process inherits, by name; none outside of a study."""
    parent = find_parent()
    return parent.options if parent is not None else {}


def session_of_parent() -> Path:
    """Return the directory of the session whose sample or step has started this process."""
    return Path(os.environ[SESSION_VARIABLE])


# --- the first member -----------------------------------------------------------------------------------


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
    values = {name: getattr(OPTIONS.arguments, name, None) for name in _INHERITED}
    return {name: value for name, value in values.items() if value is not None}


# --- a further member -----------------------------------------------------------------------------------


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
        OPTIONS.member = _started_before(parent, known, arguments, members)
        if OPTIONS.member is not None:
            raise AlreadyStartedError(
                f"An earlier attempt of this sample has started '{OPTIONS.member.root}'; it is not started again."
            )
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
            specification=str(arguments.specification),
            variables=dict(OPTIONS.overrides.variables),
            groups=groups,
            options=_options(),
            directory=str(Path.cwd()),
            waits_in=_waiting_group(Session(session_of_parent()), groups, members) if OPTIONS.waits else "",
        ).of_this_process()
        members.write(OPTIONS.member)
    if names:
        OPTIONS.renamed = names.renamed
    return names


def _started_before(
    parent: Member, known: list[Member], arguments: argparse.Namespace, members: Members
) -> Member | None:
    """Return the study that an earlier attempt of the same sample or step has started with the same command.

    A worker may die after its sample has started the study; then the sample runs again. It may also die during the
    launch: then the study does not run, and is started now.
    """
    if AGAIN_VARIABLE not in os.environ:
        return None
    own = parent.id, _place(parent), str(arguments.specification), dict(OPTIONS.overrides.variables)
    same = [one for one in known if (one.parent, one.started_by, one.specification, one.variables) == own]
    for one in reversed(same):
        stored = members.read(one.id)  # of this moment, on each node
        if stored is not None and not _has_died_launching(stored):
            return stored
    return None


def _has_died_launching(member: Member) -> bool:
    """Tell whether a launch in an earlier attempt of a sample, which has ended with it, did not reach its end."""
    is_here = is_this_machine(member.machine)
    return member.state is MemberState.LAUNCHED and not (is_here and ProcessId(*member.process).is_alive)


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
