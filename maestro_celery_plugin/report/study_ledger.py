"""The ledgers of a study and of the other studies of its session, read in parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from maestro_celery_plugin.ledger.entries import COORDINATOR, ENTRY, SUFFIX, Entries
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.store import PartStore
from maestro_celery_plugin.report.slot_use import SlotUse
from maestro_celery_plugin.study.members import Member

__all__ = ["LEDGER", "PART_BYTES", "read_parts", "seconds_elsewhere"]

# Bytes of a ledger in memory at a time.
PART_BYTES = (1 << 17) * ENTRY.itemsize
# The ledger in the directory of a study (`study/plan.py`).
LEDGER = Path("merlin_info", "ledger")


def read_parts(directory: Path, study: int) -> tuple[LedgerReader, Iterator[tuple[str, Entries]]]:
    """Return the reader of a ledger, and (writer, next entries) for all writers, one after the other.

    Args:
        directory: The ledger.
        study: Number of the study.
    """
    reader = LedgerReader(directory, study, store=PartStore(PART_BYTES))
    writers = sorted(path.name.removesuffix(SUFFIX) for path in directory.glob(f"*{SUFFIX}"))
    return reader, _parts_of(reader, writers)


def _parts_of(reader: LedgerReader, writers: list[str]) -> Iterator[tuple[str, Entries]]:
    for writer in writers:
        for entries in reader.parts(writer):
            yield writer, entries


def seconds_elsewhere(members: Iterable[Member]) -> dict[str, float]:
    """Return the seconds in which slots had samples of these studies, by worker.

    Raises:
        OSError: a file cannot be read.
    """
    held: dict[str, float] = defaultdict(float)
    for member in members:
        uses: dict[str, SlotUse] = defaultdict(SlotUse)
        for writer, entries in read_parts(Path(member.root) / LEDGER, int(member.id, 16))[1]:
            if writer != COORDINATOR:
                uses[writer].add(entries)
        for writer, use in uses.items():
            held[writer] += use.held_s
    return held
