"""Fences: a worker sees what the coordinator has cancelled, also if a part of the coordinator's file is written late."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, SUFFIX, Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.worker import fences
from maestro_celery_plugin.worker.fences import Fences

SIZE = ENTRY.itemsize


@pytest.mark.parametrize("is_repaired", [True, False])
def test_what_was_damaged_counts_when_the_coordinator_has_written_it_again(
    tmp_path, monkeypatch, still_clock, advance_clock, is_repaired
):
    """Given a cancellation that a file server has rejected, while it has stored the entry behind it, then it counts when it is
    there; what is behind it counts at once."""
    monkeypatch.setattr(fences, "CHECK_INTERVAL_S", 0.0)
    path = tmp_path / f"{COORDINATOR}{SUFFIX}"
    writer = LedgerWriter(path, 7)
    writer.append(Kind.CANCELLED, 1, 2, 0, 5)
    writer.append(Kind.CANCELLED, 1, 2, 5, 10)
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:SIZE] + bytes(SIZE) + whole[2 * SIZE :])
    own = Fences(tmp_path, 7)
    assert [own.is_invalid(1, 1, sample) for sample in (0, 5)] == [False, True]

    if is_repaired:
        path.write_bytes(whole)
    advance_clock(fences._REPAIR_S + 1)

    assert [own.must_end(1, 1, sample) for sample in (0, 5)] == [is_repaired, True]
    advance_clock(3 * fences._REPAIR_S)
    assert [own.must_end(1, 1, sample) for sample in (0, 5)] == [is_repaired, True]
    assert not own.must_end(1, 2, 5)
