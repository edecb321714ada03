"""The executions of samples: what each sample has recorded itself, and what the ledger has recorded about it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from support import Study

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.states import is_request
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["Execution", "History", "SampleRuns", "runs_of"]


@dataclasses.dataclass
class Execution:
    """One execution of a sample, by its own record; `ended_at` and `code` are None if it was ended."""

    mode: str
    process: str
    began_at: float
    ended_at: float | None = None
    code: int | None = None


@dataclasses.dataclass
class History:
    """The entries of the ledger about one sample: epochs, outcomes with their codes, and reasons to run again."""

    starts: list[int] = dataclasses.field(default_factory=list)
    outcomes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    excused: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def valid(self) -> list[tuple[int, int]]:
        """The outcomes that count; the end of an attempt that was declared lost does not."""
        return [(epoch, code) for epoch, code in self.outcomes if epoch not in self.excused]


@dataclasses.dataclass
class SampleRuns:
    """All that is known about one sample of a step record."""

    record: str
    sample: int
    executions: list[Execution]
    history: History


def runs_of(study: Study, samples: int) -> Iterator[SampleRuns]:
    """Yield what is known about each of the samples, which are as many in each sampled step record."""
    histories = _histories(study)
    for manifest in Manifest.read_all(study.path / "merlin_info" / "records"):
        for sample in range(samples) if manifest.sampled else ():
            executions = _executions(Path(manifest.workspace, manifest.paths.of(sample), "runs"))
            yield SampleRuns(manifest.name, sample, executions, histories[manifest.number, sample])


def _executions(file: Path) -> list[Execution]:
    found: list[Execution] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        what, mode, process, time, *code = line.split()
        if what == "start":
            found.append(Execution(mode, process, float(time)))
        else:
            last = next(one for one in reversed(found) if one.process == process and one.ended_at is None)
            last.ended_at, last.code = float(time), int(code[0])
    return found


def _histories(study: Study) -> dict[tuple[int, int], History]:
    histories: dict[tuple[int, int], History] = defaultdict(History)
    # A worker records several ends of one attempt: the first one is the reason.
    for _, entries in LedgerReader(study.path / "merlin_info" / "ledger").poll():
        for entry in entries:
            history, epoch, code = histories[int(entry["record"]), int(entry["start"])], int(entry["epoch"]), int(entry["code"])
            kind = Kind(int(entry["kind"]))
            if kind == Kind.STARTED:
                history.starts.append(epoch)
            elif kind == Kind.ENDED and not is_request(code):
                history.outcomes.append((epoch, code))
            elif kind in (Kind.LOST, Kind.STOPPED, Kind.NOT_RUN, Kind.ENDED):
                history.excused.setdefault(epoch, "requested" if kind == Kind.ENDED else kind.name.lower())
    return histories
