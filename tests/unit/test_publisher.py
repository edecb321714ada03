"""The publisher: what it has recorded before an error counts."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
from ensembles import a_study

from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.ledger.entries import SUFFIX, Kind
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.writer import LedgerWriter


class BrokenSender:
    """A connection to a broker that breaks after one message."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.left = 1

    def send(self, task, task_queue, level):
        if not self.left:
            raise ConnectionError("away")
        self.left -= 1
        self.epochs.append(task.epoch)


def test_an_epoch_of_which_a_message_was_sent_before_an_error_is_not_used_again(tmp_path):
    """Given a broker that has taken one of two messages, then the samples are sent again under a later epoch: otherwise the
    message and a later one would run a sample at the same time."""
    plan, manifest = a_study(tmp_path / "study")
    records = StepRecords(plan, {"w": WorkerGroupSettings(task_queues=("merlin",))})
    record = records.register(manifest)
    record.begin(cancelled=False)
    publisher = Publisher(plan, None, records, {"merlin"}, set().__contains__, set().add)
    publisher._sender = sender = BrokenSender()

    with pytest.raises(BrokerError):
        publisher.send(record, SampleSet.of_samples([1, 5]))
    assert records.waiting(record).samples().tolist() == [1, 5]
    sender.left = 9
    publisher.send(record, SampleSet.of_range(0, 10))

    first, *later = sender.epochs
    assert min(later) > first


def test_samples_that_a_worker_takes_from_an_unknown_message_are_not_sent_after_a_resume(tmp_path, monkeypatch):
    """Given a message whose entry a power cut has cost, and a worker that takes it just before the new conductor writes its
    epoch, then the new message about these samples is not sent, and the rest of them is sent like a lost message."""
    plan, manifest = a_study(tmp_path / "study")
    groups = {"w": WorkerGroupSettings(task_queues=("merlin",))}
    earlier = StepRecords(plan, groups)
    earlier.record_sent(earlier.register(manifest), 1, 0, 10)
    earlier.close()
    records = StepRecords(plan, groups)
    records.live_writers = {"w-1": None}
    records.load(lambda: ["w-1"])
    (record,) = records
    record.begin(cancelled=False)
    publisher = Publisher(plan, None, records, {"merlin"}, set().__contains__, set().add)
    sent = []
    publisher._sender = SimpleNamespace(send=lambda task, *_: sent.append((task.start, task.stop)))
    worker, flush = LedgerWriter(plan.ledger / f"w-1{SUFFIX}", plan.number), records.flush
    monkeypatch.setattr(records, "flush", lambda: (worker.append(Kind.TAKEN, record.number, 1, 5, 6), flush()))

    with monkeypatch.context() as patch:
        patch.setattr(records, "follow", fails)
        with pytest.raises(OSError, match="Input/output"):
            publisher.send(record, SampleSet.of_samples([1, 5, 6]))
    publisher.send(record, SampleSet.of_samples([1, 5, 6]))
    assert sent == [(1, 2)]

    monkeypatch.undo()
    publisher.send(record, record.unassigned(records.leased(record), SampleSet.of_samples([1, 5, 6])))
    assert sent[1:] == [(1, 2), (6, 7)]
    worker.close()


def fails():
    raise OSError(errno.EIO, "Input/output error")
