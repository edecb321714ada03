"""The step records of a study in the conductor, kept up to date from the ledger."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from maestro_celery_plugin import clock
from maestro_celery_plugin.conductor.ledger_follower import LedgerFollower
from maestro_celery_plugin.conductor.new_entries import NewEntries
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.ledger.claims import Claims, MessageName
from maestro_celery_plugin.ledger.entries import COORDINATOR, SUFFIX, Kind
from maestro_celery_plugin.ledger.leases import Lease
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.store import STORE, Store
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import Outcome, RecordState
from maestro_celery_plugin.study.conductor_starts import count_start
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.manifest import FILE, Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.reasons import Reason, write_reasons

__all__ = ["TERMINAL", "StepRecords"]

LOGGER = logging.getLogger(__name__)

TERMINAL = (RecordState.FINISHED, RecordState.FAILED, RecordState.TIMED_OUT, RecordState.CANCELLED)


class StepRecords:
    """All step records that were ever submitted, and the leases of their samples.

    Args:
        plan: The study.
        groups: The worker groups by name.
        store: The file operations.

    Attributes:
        leases: The leases of the workers.
        waiting_messages: The messages that no slot has taken.
        without_message: Samples that dead workers have had, by step record, until the publisher has sent them again.
        claims: The claims of the study.
        suspect_messages: Messages of an earlier conductor about suspects. Until they are taken back, no suspect gets
            its turn: the worker that takes such a message would run another one at the same time.
        stop_request: Sentence that names the sample which has requested that all workers stop; empty without a request.
        started_writers: The writers that have started a sample.
        live_writers: The live workers: the dictionary `WorkerPool.alive`, which `Scaling` assigns once.
        quick_failures: The last samples of each worker that have failed early or could not run.
    """

    def __init__(self, plan: StudyPlan, groups: Mapping[str, WorkerGroupSettings], store: Store = STORE) -> None:
        self._plan, self._groups = plan, groups
        to_disk = plan.settings.resources.sync_ledger
        self._writer = LedgerWriter(plan.ledger / f"{COORDINATOR}{SUFFIX}", plan.number, to_disk=to_disk, store=store)
        self._follower = LedgerFollower(plan, lambda writer: writer in self.live_writers, self._may_be_here, store)
        self.claims = Claims(plan.claims, plan.number, store)
        self._records: dict[str, StepRecord] = {}
        self._by_number: dict[int, StepRecord] = {}
        self._last_number = 0
        self._changed: set[int] = set()
        # Whether a step record was stopped since the last look at all workers, who may have leases of its samples.
        self._must_be_fresh = False
        self.live_writers: Mapping[str, Heartbeat] = {}
        self.leases, self.waiting_messages = self._follower.leases, self._follower.waiting_messages
        self.quick_failures, self.started_writers = self._follower.quick_failures, self._follower.started_writers
        self.without_message: dict[int, list[SampleSet]] = {}
        self.suspect_messages: list[MessageName] = []
        self.stop_request = ""

    def load(self, alive: Callable[[], Iterable[str]]) -> None:
        """Load the step records of an earlier conductor.

        Args:
            alive: Returns the live workers. This is called after the ledger was read: a worker that has begun meanwhile
                is in the ledger, and its heartbeat would be missing before.
        """
        for manifest in Manifest.read_all(self._plan.records):
            self._add(manifest, str(Path(manifest.workspace).relative_to(self._plan.root)))
        self.store_reasons()  # the reasons of the earlier conductor are not valid any more
        self.follow(fresh=True)
        for writer in self.leases.holders().difference(alive()):
            self.leases.revoke(writer)
        for record in self:
            # The conductor died as well, so no sample was the cause.
            self._write_lost(record, record.samples.find_running() - self.leased(record), external_cause=True)
        self.follow()
        for record in self:
            self.suspect_messages += self.waiting_messages.of_record(record.number, record.suspects())
        starts = count_start(self._plan)
        for record in self:
            record.was_loaded = True
            has_lost_entries = record.samples.highest_epoch > record.samples.epoch
            record.samples.skip_epochs(starts)
            if has_lost_entries:
                # A message of before the lost entries would count as valid about samples that have run since.
                self.record_sent(record, record.samples.epoch + 1, 0, record.manifest.samples)
        self.follow_own()

    def _may_be_here(self, writer: str) -> bool:
        """Tell whether a worker runs on this node, or may have run here before it died."""
        beat = self.live_writers.get(writer)
        return writer != COORDINATOR and (beat is None or beat.is_here)

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self._records.values())

    def by_number(self, number: int) -> StepRecord | None:
        """Return the step record with a number; None without one."""
        return self._by_number.get(number)

    def with_work(self) -> list[StepRecord]:
        """Return the step records that Maestro waits for and that have not ended."""
        return [record for record in self if self.has_work(record)]

    def has_work(self, record: StepRecord) -> bool:
        """Tell whether Maestro waits for a step record, and it has not ended."""
        return record.active and (record.is_undisturbed or self.state(record) not in TERMINAL)

    def register(self, manifest: Manifest) -> StepRecord:
        """Store the manifest of a step record under its number; return the step record, which may exist already.

        Args:
            manifest: The manifest; this method sets its number.
        """
        relative = str(Path(manifest.workspace).relative_to(self._plan.root))
        existing = self._records.get(relative)
        number = existing.number if existing else self._last_number + 1
        if existing is None:
            numbered = replace(manifest, number=number)
            numbered.write(self._plan.records / relative / FILE)
            return self._add(numbered, relative)
        # A user may have corrected its rules. It takes samples that were added together with the others, later.
        self.store_manifest(existing, replace(manifest, number=number, samples=existing.manifest.samples))
        return existing

    def store_manifest(self, record: StepRecord, manifest: Manifest) -> None:
        """Change the manifest of a step record; a worker reads it again when samples are sent under the next epoch.

        Raises:
            OSError: it cannot be stored.
        """
        self.write_manifest(record, manifest)
        self.use_manifest(record, manifest)

    def write_manifest(self, record: StepRecord, manifest: Manifest) -> None:
        """Write the manifest of a step record for workers, and for the next conductor.

        Raises:
            OSError: it cannot be stored.
        """
        manifest.write(self._plan.records / record.relative / FILE)

    def use_manifest(self, record: StepRecord, manifest: Manifest) -> None:
        """Let this conductor use the manifest of a step record."""
        record.manifest = manifest
        record.samples.set_max_retries(manifest.max_retries)

    def _add(self, manifest: Manifest, relative: str) -> StepRecord:
        groups = tuple(name for name, group in self._groups.items() if manifest.task_queue in group.task_queues)
        samples = SampleStates(manifest.samples, manifest.max_retries)
        record = StepRecord(manifest, relative, samples, groups)
        record.is_on_trial = functools.partial(self.quick_failures.concerns, manifest.number)
        record.has_turn = functools.partial(self._has_turn, record)
        self._records[relative] = self._by_number[manifest.number] = record
        self._last_number = max(self._last_number, manifest.number)
        return record

    def _has_turn(self, record: StepRecord) -> bool:
        """Tell whether no other suspect may run on the workers of a step record now.

        A worker may have one of a step record that Maestro has not submitted to this conductor so far.
        """
        if self.suspect_messages:
            return False
        others = [o for o in self if o is not record and not set(o.groups).isdisjoint(record.groups)]
        return not any(
            (other.suspect is not None and other.active and not other.stops_early)
            or other.holds_suspect(functools.partial(self.leased, other))
            for other in others
        )

    def state(self, record: StepRecord) -> RecordState:
        """Return the state of a step record; it is not final while a machine may be the cause of its failures."""
        if record.is_undisturbed and not record.purged:  # as most step records of a large study
            return record.state(has_leases=self.leases.has(record.number))
        # No message about a step record that has failed may remain: its samples would run later. A full disk may have
        # delayed the record of a cancellation.
        if record.active and (record.has_failed or record.is_cancelled_at_once):
            self._stop(record)
        if self._must_be_fresh and record.stops_early and not self.leases.has(record.number):
            self.follow(fresh=True)  # NFS hides the ledger of a worker that has begun a moment ago
        state = record.state(has_leases=self.leases.has(record.number) or self._has_claims(record))
        is_open = state is RecordState.FINISHED and self.quick_failures.concerns(record.number)
        return RecordState.RUNNING if is_open else state

    def _has_claims(self, record: StepRecord) -> bool:
        """Tell whether workers may have claimed messages of a purged step record; their entries are visible later."""
        return record.purged and bool(record.samples.find(Outcome.OPEN, within=self.waiting(record)))

    def _stop(self, record: StepRecord) -> None:
        """Let no further sample of a step record run; end those that run."""
        if not record.samples.is_complete and record.samples.cancelled_epoch < record.samples.epoch:
            self.invalidate(record)

    def leased(self, record: StepRecord) -> SampleSet:
        """Return the samples of a step record that have a lease."""
        return self.leases.samples(record.number)

    def waiting(self, record: StepRecord, within: SampleSet | None = None) -> SampleSet:
        """Return the samples of a step record about which a message waits in a task queue, or was lost.

        Args:
            record: The step record.
            within: Leave out the messages without one of these samples; None for all messages.
        """
        return self.waiting_messages.samples(record.number, within)

    # --- reading the ledger ---

    def follow(self, skip: Container[str] = (), *, fresh: bool = False) -> None:
        """Apply the new entries of the ledger.

        A caller that draws a conclusion from missing entries must not skip any writer, and must set `fresh`.

        Args:
            skip: Writers to skip in this call.
            fresh: Whether to include writers that have begun on other nodes a moment ago.
        """
        self._apply_all(self._follower.poll(skip, fresh=fresh))
        if fresh:
            self._must_be_fresh = False

    def follow_own(self) -> None:
        """Apply the new entries of the coordinator itself."""
        self._apply_all(self._follower.poll_own())

    def _apply_all(self, news: Iterable[NewEntries]) -> None:
        for new in news:
            known = new.only(self._by_number)
            self._changed.update(known.numbers)
            ended = known.apply([self._by_number[number] for number in known.numbers])
            for record, samples in ended:
                self._note_stop_request(record, samples)
            for record, _ in ended:
                if record.has_failed:
                    self._stop(record)

    def changed(self) -> list[StepRecord]:
        """Return the step records with new entries since the last call."""
        changed, self._changed = self._changed, set()
        return [self._by_number[number] for number in changed]

    def _note_stop_request(self, record: StepRecord, samples: Any) -> None:
        """Note that one of these samples has requested that all workers stop."""
        if not len(samples):
            return
        stopped = samples[record.samples.outcome[samples] == Outcome.STOPPED_STUDY]
        if len(stopped):
            name = record.manifest.name
            self.stop_request = f"Sample {stopped[0]} of '{name}' has requested that all workers stop (exit code 105)."

    # --- writing the ledger ---

    def record_sent(self, record: StepRecord, epoch: int, start: int, stop: int) -> None:
        """Record that samples are sent under a new epoch, which makes earlier messages about them invalid."""
        self._writer.append(Kind.SENT, record.number, epoch, start, stop)

    def record_rerun(self, record: StepRecord, sample: int) -> None:
        """Record that a failed sample runs again."""
        self._writer.append(Kind.RERUN, record.number, record.samples.last_epoch(sample), sample)
        record.delayed[sample] = clock.monotonic()
        self.follow()

    def record_cancelled(self, record: StepRecord, epoch: int) -> None:
        """Record that no sample of a step record may run under this or an earlier epoch."""
        self._writer.append(Kind.CANCELLED, record.number, epoch, 0, record.manifest.samples)

    def record_anew(self, record: StepRecord, start: int, stop: int, epoch: int) -> None:
        """Record that samples [start, stop) run `cmd` again, with other inputs; outcomes up to an epoch are invalid."""
        self._writer.append(Kind.RERUN, record.number, epoch, start, stop, code=1)

    def give_up(self, live_machines: Callable[[StepRecord], int]) -> None:
        """Let the samples fail that no worker can run.

        Args:
            live_machines: Returns the number of machines with a worker that can run samples of a step record.
        """
        for record in [record for record in self if record.faults and self.has_work(record)]:
            leased = self.leased(record)
            for sample, faults in list(record.faults.items()):
                if record.samples.outcome[sample] != Outcome.OPEN:
                    del record.faults[sample]
                elif sample not in leased and faults.are_final(live_machines(record)):
                    self._writer.append(Kind.GAVE_UP, record.number, faults.epoch, sample, code=faults.code)
                    del record.faults[sample]
        self.follow_own()

    def flush(self) -> None:
        """Make the written entries visible to workers on other nodes.

        Raises:
            LedgerError: the entries cannot be written.
        """
        self._writer.flush()

    def cancel(self, *records: StepRecord, reason: str) -> None:
        """Cancel step records, and store the reason for `maestro-celery explain`."""
        for record in records:
            record.cancelled, record.cancelled_at, record.reason = True, clock.monotonic(), reason
        self.invalidate(*records)
        self.store_reasons()

    def store_reasons(self) -> None:
        """Store why step records do not run or have ended; log a failure, such as a full disk, and continue."""
        reasons = {r.manifest.name: Reason(r.reason, r.failure is not None) for r in self if r.reason}
        try:
            write_reasons(self._plan.reasons, reasons)
        except OSError as cause:
            LOGGER.warning("%s", cause)

    def invalidate(self, *records: StepRecord) -> None:
        """Invalidate all messages about step records that were sent so far."""
        for record in records:
            samples = record.samples
            if samples.cancelled_epoch < samples.epoch or not samples.epoch:
                self._writer.append(Kind.CANCELLED, record.number, samples.epoch + 1, 0, record.manifest.samples)
        self.flush()
        self.follow_own()
        self._must_be_fresh = True

    def mark_lost(self, writers: Iterable[str], *, external_cause: bool = False, is_elsewhere: bool = False) -> None:
        """Record the running attempts of dead workers as lost, and revoke the leases.

        Args:
            writers: The dead workers.
            external_cause: Whether it is certain that no sample is the cause of their death.
            is_elsewhere: Whether they were on other machines, so that their last entries may not be visible.
        """
        for writer in writers:
            for lease in self.leases.of_writer(writer):
                self._write_lost_lease(lease, external_cause=external_cause, is_elsewhere=is_elsewhere)
            self.leases.revoke(writer)  # after its entries: if they cannot be written, a later call finds the leases
        self.follow()

    def _write_lost_lease(self, lease: Lease, *, external_cause: bool, is_elsewhere: bool) -> None:
        record = self._by_number.get(lease.record)
        if record is None:
            return
        samples = SampleSet.of_range(lease.start, lease.stop)
        self.without_message.setdefault(lease.record, []).append(samples)
        running = record.samples.running_in(lease.start, lease.stop)
        # A later attempt belongs to another worker.
        own = SampleSet.of_samples(running[record.samples.started[running] == lease.epoch])
        self._write_lost(record, own, external_cause=external_cause)
        if is_elsewhere:
            self.invalidate_attempts(record, samples, lease.epoch)

    def invalidate_attempts(self, record: StepRecord, samples: SampleSet, epoch: int) -> None:
        """Record that attempts at open samples under an epoch have no outcome, whenever their entries become visible.

        Args:
            record: The step record.
            samples: The samples.
            epoch: The epoch of the attempts, and of earlier ones.
        """
        for start, stop in record.samples.find(Outcome.OPEN, within=samples).ranges():
            self._writer.append(Kind.INVALID, record.number, epoch, start, stop)

    def record_lost(self, record: StepRecord, samples: SampleSet) -> None:
        """Record attempts without an end and without a lease as lost, so that their samples may run again."""
        if samples:
            self._write_lost(record, samples, external_cause=True)
            self.follow_own()

    def _write_lost(self, record: StepRecord, samples: SampleSet, *, external_cause: bool) -> None:
        indices = samples.samples()
        for sample, epoch in zip(indices.tolist(), record.samples.started[indices].tolist(), strict=True):
            self._writer.append(Kind.LOST, record.number, epoch, sample, code=int(external_cause))

    def close(self, going_on: Collection[str] = ()) -> None:
        """Record the running attempts of ended workers as lost, and close the ledger.

        Args:
            going_on: Workers that may still run samples, and record their ends.
        """
        self.follow(fresh=True)
        self.mark_lost(self.leases.holders().difference(going_on), external_cause=True)
        self._writer.close()
