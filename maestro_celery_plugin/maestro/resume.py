"""Resume: start a new conductor for a study whose conductor has died, or that was cancelled."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.choice import BrokerChoice, check, choose
from maestro_celery_plugin.broker.private import check_address, cluster_address
from maestro_celery_plugin.config.groups import has_other_hosts
from maestro_celery_plugin.errors import DamagedFileError, StudyError
from maestro_celery_plugin.files import check_writable, revoke, write_atomically
from maestro_celery_plugin.maestro.cancel import end_leftovers, workers_elsewhere
from maestro_celery_plugin.maestro.cancel_report import CancelReport
from maestro_celery_plugin.maestro.correction import Correction, check_complete, note_of_change, words_of
from maestro_celery_plugin.maestro.limits import Limits, apply_limits
from maestro_celery_plugin.maestro.reruns import RerunRequest, Reruns
from maestro_celery_plugin.maestro.resumed_conductor import (
    await_cancellation,
    await_end,
    await_release,
    await_start,
    conductor_log,
    has_finished,
    start_conductor,
)
from maestro_celery_plugin.maestro.stop_workers import start_workers_again
from maestro_celery_plugin.processes import forget_variable
from maestro_celery_plugin.report.exit_codes import StudyCode, code_of
from maestro_celery_plugin.report.reader import StatusReader
from maestro_celery_plugin.study.conductor_lock import LOCK_LIMIT_S, file_lock, has_conductor
from maestro_celery_plugin.study.heartbeats import SILENCE_LIMIT_S
from maestro_celery_plugin.study.manifest import FILE
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.notifications import Event, Notified
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.sample_commands import write_commands
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, BrokerLocation, Session
from maestro_celery_plugin.study.study_processes import StudyProcesses

__all__ = ["resume"]

_START_LIMIT_S = 30.0
# Number of step records that a message names.
_SHOWN = 5
# Seconds between two polls, as those of `maestro run`.
_SLEEP_S = 60
_IS_CONDUCTED = (
    "A conductor of the study '{study}' is running or starting; `maestro-celery status {study}` shows the progress, "
    "`maestro cancel {study}` cancels the study."
)


def resume(
    directory: Path,
    *,
    request: RerunRequest,
    specification: Path | None = None,
    limits: Limits,
    broker: str | None,
    broker_host: str | None = None,
    foreground: bool,
) -> StudyCode:
    """Start a new conductor for a study; print before what it will run. A study that has finished needs none.

    Step records and samples that have finished run again only on request, or if what they depend on runs again.

    Args:
        directory: The study's workspace.
        request: What runs again.
        specification: A corrected specification; None to keep that of the study.
        limits: The limits that change; the others stay as the launch, `maestro update` or a resume has set them.
        broker: Broker URL, or ``private``; None for the broker of the launch.
        broker_host: Address of this machine at which compute nodes reach the private broker; None for the default.
        foreground: Whether to wait for the end of the conductor.

    Returns:
        How the study is at the end of the conductor, or without one; `StudyCode.RUNNING` if nobody waits for its end.

    Raises:
        StudyError: the directory is not that of an ensemble study, its conductor is alive, or no new one starts.
        BrokerError: the broker cannot be used.
    """
    plan = _plan_of(directory)
    await_cancellation(plan)
    has_changes = request != RerunRequest() or specification or limits != Limits() or broker or broker_host
    if start_workers_again(plan, has_options=bool(has_changes)):
        print("The conductor of the study runs, and starts workers again.")
        return await_end(plan, lambda: await_release(plan)) if foreground else StudyCode.RUNNING
    try:
        with FileLock(plan.info / "resume.lock").acquire(timeout=0):
            plan = _with_correction(plan, specification)
            prepared = _prepare(plan, broker, broker_host, request, limits)
            if prepared is None:
                return code_of(StatusReader(plan.root).read(), is_to_end=True) if foreground else StudyCode.WELL
            log = conductor_log(plan)
            process = start_conductor(plan, _SLEEP_S if prepared.sleep is None else prepared.sleep)
            await_start(plan, process)
    except Timeout as cause:
        raise StudyError(_IS_CONDUCTED.format(study=plan.root)) from cause
    return await_end(plan, process.wait, log) if foreground else StudyCode.RUNNING


def _plan_of(directory: Path) -> StudyPlan:
    """Return the plan of a study, with the variables that its launch has set; they are set in this process as well.

    Raises:
        StudyError: the study was a dry run, or a new conductor could record nothing.
    """
    plan = StudyPlan.read(directory)
    if plan.home is not None and not plan.session.exists():
        plan = _with_own_session(plan)
    if not plan.session.exists():
        raise StudyError(f"The study '{plan.root}' was a dry run; it has no steps to continue.")
    _check_secret(plan)
    environment = Session(plan.session).apply_environment()
    plan = dataclasses.replace(plan, overrides=dataclasses.replace(plan.overrides, environment=environment))
    for place in (plan.root, plan.info, plan.session, plan.ledger):
        if place.is_dir():
            check_writable(place)  # otherwise the new conductor could record nothing, and would end at once
    return plan


def _check_secret(plan: StudyPlan) -> None:
    """Make another secret for a session that has lost its own; the new conductor sends all samples again.

    Raises:
        StudyError: other studies of the session live, and their messages have the secret of before.
    """
    session = Session(plan.session)
    try:
        session.secret  # noqa: B018 (it raises an error)
    except DamagedFileError as damage:
        if Members(plan.session).living():
            raise
        session.renew_secret()
        print(
            f"maestro-celery: note: '{session.path / 'secret'}' was damaged ({damage.problem}); the messages of the "
            "session have another key now.",
            file=sys.stderr,
        )


def _with_own_session(plan: StudyPlan) -> StudyPlan:
    """Return the plan of a study that has lost its session, because the study that has begun it was removed."""
    plan = dataclasses.replace(plan, home=None)
    write_commands(Session.create(plan.session).path)
    write_atomically(plan.root / "batch.info", yaml.dump(plan.to_batch()))
    return plan


def _with_correction(plan: StudyPlan, specification: Path | None) -> StudyPlan:
    """Return the plan of a study that has taken a corrected specification, if there is one.

    The workers that are left know the specification of before, so they end first.

    Raises:
        Timeout: a conductor of the study is alive.
        SpecificationError: the study cannot take the specification.
        StudyError: a correction was interrupted before, or the workers do not end.
    """
    if specification is None:
        check_complete(plan)
        note = note_of_change(plan)
        if note:
            print(f"maestro-celery: note: {note}", file=sys.stderr)
        return plan
    correction = Correction(plan, specification)
    if has_conductor(plan):
        raise Timeout(str(plan.conductor_lock))
    _end_workers(plan)
    with file_lock(plan).acquire(timeout=LOCK_LIMIT_S):
        plan = correction.apply()
    print(f"Changed in the specification: {words_of(correction.changes) or 'nothing'}.")
    return plan


def _end_workers(plan: StudyPlan) -> None:
    """End the workers and the batch jobs of an earlier conductor.

    Raises:
        StudyError: something may still run.
    """
    others = Members(plan.session).living(without=plan.id)
    if others:
        raise StudyError(
            f"--spec: the workers of '{plan.root}' know the specification of before, and other studies use them: "
            f"{', '.join(member.root for member in others)}. Wait for their end, or `maestro-celery session stop`."
        )
    report, session = CancelReport(), Session(plan.session)
    end_leftovers(plan, report)
    clock.wait_until(lambda: not workers_elsewhere(session), SILENCE_LIMIT_S + _START_LIMIT_S, interval_s=0.5)
    if not report.is_complete or workers_elsewhere(session):
        raise StudyError(
            f"The workers of '{plan.root}' know the specification of before, and may still run: "
            f"{' '.join(report.sentences)} End them, and resume again."
        )


def _prepare(
    plan: StudyPlan, broker: str | None, broker_host: str | None, request: RerunRequest, limits: Limits
) -> Limits | None:
    """Prepare a study for a new conductor; return its limits, or None if the study has finished.

    Raises:
        Timeout: a conductor of the study is alive.
        BrokerError: the broker cannot be used.
        StudyError: what was requested cannot run again.
    """
    if has_conductor(plan):
        raise Timeout(str(plan.conductor_lock))
    is_over = has_finished(plan)  # before this process locks the study as its conductor does
    with file_lock(plan).acquire(timeout=LOCK_LIMIT_S):
        session, reruns = Session(plan.session), Reruns(plan, request)
        if is_over and not reruns.sentences():
            _announce(reruns)
            return None
        if plan.settings.needs_workers:
            _prepare_broker(session, broker)
        if broker_host or has_other_hosts(plan.settings):
            host = broker_host or cluster_address()
            check_address(host)
            session.write_broker_host(host)
        _end_leftovers(plan)
        _announce(reruns)
        reruns.record()
        _forget_events(plan, request, has_work=bool(reruns.sentences()))
        all_limits = apply_limits(plan, limits)
        revoke(plan.cancel_request)
        revoke(plan.purged_steps)
        if not Members(plan.session).living(without=plan.id):
            session.revoke_stop()
        return all_limits


def _forget_events(plan: StudyPlan, request: RerunRequest, *, has_work: bool) -> None:
    """Let the end be notified again, if something will run, and a failure, if something that has failed will."""
    runs_failed = request.failed or request.failed_steps or bool(request.steps)
    Notified(plan).forget(*[Event.END] * has_work, *[Event.FAILURE] * runs_failed)


def _announce(reruns: Reruns) -> None:
    """Print what will run, so that a user sees it before it does."""
    sentences = reruns.sentences()
    print("This will run:" if sentences else "Nothing remains to run.")
    for sentence in sentences:
        print(f"  {sentence}")
    if reruns.misled:
        print(
            f"Outcomes are missing that {_some(reruns.misled)} {'has' if len(reruns.misled) == 1 else 'have'} used, as "
            "after a power cut; what has used them runs again."
        )
    cancelled = reruns.cancelled
    if cancelled:
        print(f"Cancelled: {_some(cancelled)}, and what depends on them; --step NAME runs them.")
    failures = reruns.kept_failures
    if failures:
        words = "1 failed sample does" if failures == 1 else f"{failures} failed samples do"
        print(f"{words} not run again; --failed runs them, and what depends on them.")
    sys.stdout.flush()


def _some(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _end_leftovers(plan: StudyPlan) -> None:
    """End the samples of dead workers on this machine: the new conductor runs these samples again.

    Workers that live continue, and so do the scripts of native steps. The steps of the workers have a manifest.
    """
    manifests = plan.records.rglob(FILE)
    workspaces = [plan.root / path.parent.relative_to(plan.records) for path in manifests]
    ended = StudyProcesses(plan.root, plan.session).end_orphans(workspaces)
    if ended.remaining:
        numbers = ", ".join(map(str, ended.remaining))
        raise StudyError(
            f"The processes {numbers} of dead workers of '{plan.root}' cannot be ended; end them as their user, and "
            "resume again."
        )
    if ended.text:
        print(f"Ended {ended.text}.", file=sys.stderr)


def _prepare_broker(session: Session, url: str | None) -> None:
    earlier = session.read_broker()
    if url:
        choice = choose(url)
    elif earlier is not None and earlier.supervisor is None:
        choice = BrokerChoice(earlier.url, "the launch of the study", earlier.celery)
    else:
        choice = BrokerChoice(None, "private broker")
    check(choice)
    forget_variable(ENVIRONMENT_VARIABLE)  # Maestro stores the environment, and samples inherit it
    if choice.url:
        session.write_broker(BrokerLocation(url=choice.url, celery=dict(choice.celery)))
    elif earlier is not None and earlier.supervisor is None:  # `--broker private`
        session.remove_broker()
