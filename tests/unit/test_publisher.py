"""The publisher: what it has recorded before an error counts."""

from __future__ import annotations

import pytest
from ensembles import a_study

from maestro_celery_plugin.conductor.publisher import Publisher
from maestro_celery_plugin.conductor.step_records import StepRecords
from maestro_celery_plugin.config.settings import WorkerGroupSettings
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.ledger.sample_set import SampleSet


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
