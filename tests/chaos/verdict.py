"""The verdict: what each sample has recorded itself, against the ledger and the promises."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from support import Study

from chaos.specification import code_of, requests_of
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.states import is_request
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["broken_promises"]


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
    """The entries of the ledger about one sample."""

    starts: list[int] = dataclasses.field(default_factory=list)
    outcomes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    excused: set[int] = dataclasses.field(default_factory=set)


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
    for _, entries in LedgerReader(study.path / "merlin_info" / "ledger").poll():
        for entry in entries:
            history, epoch, code = histories[int(entry["record"]), int(entry["start"])], int(entry["epoch"]), int(entry["code"])
            if entry["kind"] == Kind.STARTED:
                history.starts.append(epoch)
            elif entry["kind"] == Kind.ENDED and not is_request(code):
                history.outcomes.append((epoch, code))
            elif entry["kind"] in (Kind.LOST, Kind.STOPPED, Kind.NOT_RUN, Kind.ENDED):
                history.excused.add(epoch)
    return histories


def broken_promises(study: Study, samples: int, *, gentle: bool, killed_samples: bool) -> Iterator[str]:
    """Yield a sentence for each broken promise.

    Args:
        study: The study, which has ended.
        samples: Number of samples of a step record.
        gentle: Whether nothing has been done that may make a sample run again.
        killed_samples: Whether samples were killed, which is their outcome.
    """
    histories = _histories(study)
    for manifest in Manifest.read_all(study.path / "merlin_info" / "records"):
        for sample in range(samples) if manifest.sampled else ():
            executions = _executions(Path(manifest.workspace, manifest.paths.of(sample), "runs"))
            history = histories[manifest.number, sample]
            for sentence in _broken(executions, history, sample, gentle=gentle, killed_samples=killed_samples):
                yield f"{manifest.name}, sample {sample}: {sentence} {executions} {history}"
    if gentle and (study.path / "last" / "runs").read_text() != "run\n":
        yield "The last step ran more than once."


def _broken(
    executions: list[Execution], history: History, sample: int, *, gentle: bool, killed_samples: bool
) -> Iterator[str]:
    ended = [one for one in executions if one.ended_at is not None]
    complete = [one for one in ended if one.code == code_of(sample)]
    was_killed = killed_samples and any(code < 0 for _, code in history.outcomes)
    # The end of an attempt that was declared lost is invalid; so is that of a worker that was alive all the same.
    outcomes = [epoch for epoch, _ in history.outcomes if epoch not in history.excused]
    overlaps = any(later.began_at < (one.ended_at or 0) for one, later in itertools.combinations(executions, 2))
    findings = {
        "it has not one outcome.": len(outcomes) != 1,
        "it was started again after its outcome.": outcomes and max(history.starts, default=0) > outcomes[0],
        "it never ran to its end.": not complete and not was_killed,
        "it was started twice under one epoch.": len(history.starts) != len(set(history.starts)),
        "it was started again without a reason.": set(history.starts) - history.excused - set(outcomes),
        "it ran more often than the ledger says.": len(executions) > len(history.starts),
        "two executions ran at the same time.": overlaps,
        "it ran again, although nothing had happened to it.": gentle and len(executions) != 1 + requests_of(sample),
    }
    yield from (sentence for sentence, is_true in findings.items() if is_true)
    for one, later in itertools.pairwise(executions):
        if later.mode == "cmd" and one.code != 104:
            yield f"it ran cmd after {one}."
