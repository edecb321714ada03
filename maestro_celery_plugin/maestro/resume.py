"""Resume: start a new conductor for a study whose conductor has died, or that was cancelled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.choice import BrokerChoice, check, choose
from maestro_celery_plugin.broker.private import check_address, cluster_address
from maestro_celery_plugin.config.groups import has_other_hosts
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import check_writable, tail
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX, Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.processes import forget_variable
from maestro_celery_plugin.states import Outcome
from maestro_celery_plugin.study.conductor_lock import LOCK_LIMIT_S, file_lock, has_conductor
from maestro_celery_plugin.study.manifest import FILE, Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import ENVIRONMENT_VARIABLE, BrokerLocation, Session
from maestro_celery_plugin.study.study_processes import StudyProcesses

__all__ = ["rerun_failed", "resume"]

_START_LIMIT_S = 30.0
_IS_CONDUCTED = (
    "A conductor of the study '{study}' is running or starting; `maestro-celery status {study}` shows the progress, "
    "`maestro cancel {study}` cancels the study."
)


def resume(
    directory: Path,
    *,
    failed: bool,
    sleep_s: int,
    broker: str | None,
    broker_host: str | None = None,
    foreground: bool,
) -> int:
    """Start a new conductor for a study.

    Finished step records and finished samples do not run again.

    Args:
        directory: The study's workspace.
        failed: Whether failed samples run again.
        sleep_s: Seconds between two polls of the conductor.
        broker: Broker URL; None for the broker of the launch.
        broker_host: Address of this machine at which compute nodes reach the private broker; None for the default.
        foreground: Whether to wait for the end of the conductor.

    Returns:
        The number of failed samples that will run again; in the foreground, the conductor's exit code.

    Raises:
        StudyError: the directory is not that of an ensemble study, its conductor is alive, or no new one starts.
        BrokerError: the broker cannot be used.
    """
    plan = StudyPlan.read(directory)
    if not plan.session.exists():
        raise StudyError(f"The study '{plan.root}' was a dry run; it has no steps to continue.")
    for place in (plan.root, plan.info, plan.session, plan.ledger):
        if place.is_dir():
            check_writable(place)  # otherwise the new conductor could record nothing, and would end at once
    try:
        with FileLock(plan.info / "resume.lock").acquire(timeout=0):
            rerun = _prepare(plan, broker, broker_host, failed=failed)
            process = _start_conductor(plan, sleep_s)
            _await_conductor(plan, process)
    except Timeout as cause:
        raise StudyError(_IS_CONDUCTED.format(study=plan.root)) from cause
    return process.wait() if foreground else rerun


def _prepare(plan: StudyPlan, broker: str | None, broker_host: str | None, *, failed: bool) -> int:
    """Prepare a study for a new conductor; return how many failed samples will run again.

    Raises:
        Timeout: a conductor of the study is alive.
        BrokerError: the broker cannot be used.
    """
    with file_lock(plan).acquire(timeout=LOCK_LIMIT_S):
        session = Session(plan.session)
        if plan.settings.needs_workers:
            _prepare_broker(session, broker)
        if broker_host or has_other_hosts(plan.settings):
            host = broker_host or cluster_address()
            check_address(host)
            session.write_broker_host(host)
        _end_leftovers(plan)
        plan.cancel_request.unlink(missing_ok=True)
        session.revoke_stop()
        return rerun_failed(plan) if failed else 0


def _end_leftovers(plan: StudyPlan) -> None:
    """End the samples of dead workers on this machine: the new conductor runs these samples again.

    Workers that live continue, and so do the scripts of native steps. The steps of the workers have a manifest.
    """
    manifests = plan.records.rglob(FILE)
    workspaces = [plan.root / path.parent.relative_to(plan.records) for path in manifests]
    ended = StudyProcesses(plan.root).end_orphans(workspaces)
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
        choice = BrokerChoice(earlier.url, "the launch of the study")
    else:
        choice = BrokerChoice(None, "private broker")
    check(choice)
    forget_variable(ENVIRONMENT_VARIABLE)  # Maestro stores the environment, and samples inherit it
    if choice.url:
        session.write_broker(BrokerLocation(url=choice.url))


def rerun_failed(plan: StudyPlan) -> int:
    """Record in the ledger that the failed samples of a study run again; return the number of these samples."""
    entries = read_ledger(plan.ledger, plan.number)
    writer = LedgerWriter(plan.ledger / f"{COORDINATOR}{SUFFIX}", plan.number)
    count = 0
    for manifest in Manifest.read_all(plan.records):
        samples = SampleStates(manifest.samples, manifest.max_retries)
        samples.apply(entries[entries["record"] == manifest.number])
        failed = np.flatnonzero(np.isin(samples.outcome, (Outcome.FAILED, Outcome.HARD_FAILED)))
        for sample in failed:
            writer.append(Kind.RERUN, manifest.number, samples.last_epoch(int(sample)), int(sample))
        count += len(failed)
    writer.close()
    return count


def _conductor() -> str:
    own = Path(sys.executable).with_name("conductor")
    found = str(own) if own.is_file() else shutil.which("conductor")
    if not found:
        raise StudyError("There is no `conductor` in the environment of this Python; install maestrowf there.")
    return found


def _start_conductor(plan: StudyPlan, sleep_s: int) -> subprocess.Popen[bytes]:
    log = plan.root / "resumed.txt"
    with log.open("ab") as output:
        return subprocess.Popen(
            [_conductor(), "-t", str(sleep_s), "-d", "2", str(plan.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _await_conductor(plan: StudyPlan, process: subprocess.Popen[bytes]) -> None:
    """Wait until the new conductor holds the lock of the study, or has ended."""

    def has_started() -> bool:
        return has_conductor(plan) or process.poll() is not None

    clock.wait_until(has_started, _START_LIMIT_S, interval_s=0.1)
    if process.poll() not in (None, 0, 2, 3):
        output = tail(plan.root / "resumed.txt")
        raise StudyError(f"The conductor has ended with code {process.returncode}; its last lines:\n{output}")
