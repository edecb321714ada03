"""The rules of attempts: what the entries of the ledger about a sample make of its state.

A state is what later decisions need of all attempts at a sample. Each field only grows, or has the highest value that
an entry gives it, so that the state does not depend on the order in which entries of different writers are applied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.states import BROKEN, POISON_LIMIT, ExitCode, Outcome, RunMode, cannot_run_code, outcome_of

__all__ = [
    "IS_ATTEMPT",
    "STATE",
    "add_counts",
    "apply_attempts",
    "apply_one",
    "are_counted",
    "end_of",
    "invalidate",
    "is_exhausted",
    "last_codes",
    "modes",
    "outcomes",
    "run_again",
]

Array = np.ndarray[Any, Any]

# The state of a sample. Epochs count from 1; 0 stands for none.
STATE = np.dtype(
    [
        ("last", "<u8"),  # epoch and code of the last attempt that ended by itself
        ("failed", "<u8"),  # epoch and outcome of the last failure
        ("finished", "<u4"),  # epoch of the last success, times 2, plus 1 for `STOPPED_STUDY`
        ("started", "<u4"),  # epoch of the last attempt
        ("ended", "<u4"),  # epoch of the last attempt that ended or was lost
        ("run", "<u4"),  # epoch of the last attempt that has really run, times 2, plus 1 if it has requested `cmd`
        ("invalid", "<u4"),  # the epoch up to which outcomes are invalid: attempts were lost, or the sample runs again
        ("anew", "<u4"),  # the epoch up to which attempts do not count for the next one, which runs `cmd`
        ("forgotten", "<u4"),  # the epoch up to which losses and requests do not count, because the sample runs again
        ("losses", "<u4"),  # how often the worker was lost while the sample ran
        ("requests", "<u4"),  # how often the sample has requested another run
        ("reserved", "<u4"),  # a state is a whole number of words of 64 bits
    ]
)

IS_ATTEMPT = kind_mask(Kind.STARTED, Kind.ENDED, Kind.STOPPED, Kind.LOST, Kind.NOT_RUN, Kind.GAVE_UP)

# Kinds and outcomes by short names: to look up a member of an enumeration takes as long as to compare a short array.
_STARTED, _ENDED, _STOPPED, _LOST = int(Kind.STARTED), int(Kind.ENDED), int(Kind.STOPPED), int(Kind.LOST)
_NOT_RUN, _GAVE_UP, _KINDS = int(Kind.NOT_RUN), int(Kind.GAVE_UP), max(Kind) + 1
_OPEN, _FINISHED, _FAILED = Outcome.OPEN, Outcome.FINISHED, Outcome.FAILED
_STOPPED_STUDY = Outcome.STOPPED_STUDY
_RETRY, _RESTART = int(ExitCode.RETRY), int(ExitCode.RESTART)
_IS_END = kind_mask(Kind.ENDED, Kind.STOPPED, Kind.LOST, Kind.NOT_RUN)
_IS_INTERRUPTED = kind_mask(Kind.LOST, Kind.STOPPED)
_HAS_CODE = kind_mask(Kind.ENDED, Kind.GAVE_UP)
# Bits and mask of the outcome in a number that combines an epoch and an outcome; a higher epoch makes a higher number.
_OUTCOME_BITS, _OUTCOME_MASK = np.uint64(3), np.uint64(7)
# Numbers up to this are codes of starts that failed (`states.cannot_run_code`). Only workers of release 0.1 record them
# as ends of attempts; this release records `Kind.NOT_RUN`.
_CANNOT_RUN = cannot_run_code(0)
# The sum of a code and this number is not negative.
_CODE_OFFSET = 2**31
_CODE_MASK = np.uint64(2**32 - 1)


def apply_attempts(states: Array, at: Array, entries: Entries) -> None:
    """Apply entries about attempts, which may come in any order; the caller counts losses and requests.

    Args:
        states: Different samples, as `STATE`.
        at: For each entry, the place of its sample in `states`.
        entries: The entries, of the kinds in `IS_ATTEMPT`.
    """
    kinds, epochs = entries["kind"], entries["epoch"]
    # Most kinds are rare, and a study of many step records applies few entries at a time.
    found = np.bincount(kinds, minlength=_KINDS).tolist()
    if found[_STARTED]:
        _raise(states, "started", at, epochs, kinds == _STARTED)
    if len(kinds) > found[_STARTED] + found[_GAVE_UP]:
        _raise(states, "ended", at, epochs, _IS_END[kinds])
        _record_runs(states, at, entries)
    if found[_ENDED] or found[_GAVE_UP]:
        mask = _HAS_CODE[kinds]
        _end(states, at[mask], epochs[mask], entries["code"][mask], kinds[mask] == _GAVE_UP)
    if found[_LOST]:
        _raise(states, "invalid", at, epochs, kinds == _LOST)


def apply_one(states: Array, entry: Entries) -> None:
    """Apply the same entry to each of these states, as `apply_attempts` does."""
    apply_attempts(states, np.arange(len(states)), np.repeat(entry, len(states)))


def _raise(states: Array, field: str, at: Array, epochs: Array, mask: Array) -> None:
    """Raise the epochs in a field to those of the entries in a mask."""
    np.maximum.at(states[field], at[mask], epochs[mask])


def _record_runs(states: Array, at: Array, entries: Entries) -> None:
    """Store the attempts that have really run, and whether they have requested `cmd` again."""
    kinds, codes = entries["kind"], entries["code"]
    runs = entries["epoch"].astype(np.uint32) << np.uint32(1) | ((kinds == _ENDED) & (codes == _RETRY))
    _raise(states, "run", at, runs, _IS_INTERRUPTED[kinds] | ((kinds == _ENDED) & (codes > BROKEN)))


def _end(states: Array, at: Array, epochs: Array, codes: Array, given_up: Array) -> None:
    """Store the codes and the outcomes of attempts that have ended, and of samples that are given up."""
    # Use columns instead of entries: copies of whole entries take ten times as long.
    epochs = epochs.astype(np.uint64)
    np.maximum.at(states["last"], at, end_of(epochs, codes))
    for code in np.unique(codes).tolist() if codes.any() else (0,):
        of_code, outcome = codes == code, outcome_of(code)
        _add_outcome(states, outcome, at, epochs, of_code & ~given_up)
        # The code of a start that failed leaves a sample open; a sample that is given up fails.
        _add_outcome(states, _FAILED if outcome is _OPEN else outcome, at, epochs, of_code & given_up)


def end_of(epochs: Array, codes: Array) -> Array:
    """Return numbers that order ends of attempts by epoch first, then by code, as in `last` of a state."""
    ends: Array = epochs.astype(np.uint64) << np.uint64(32)
    ends |= (codes.astype(np.int64) + _CODE_OFFSET).astype(np.uint64)
    return ends


def _add_outcome(states: Array, outcome: Outcome, at: Array, epochs: Array, mask: Array) -> None:
    if outcome is _OPEN or not mask.any():
        return
    if outcome in (_FINISHED, _STOPPED_STUDY):
        flag = np.uint32(outcome is _STOPPED_STUDY)
        _raise(states, "finished", at, epochs.astype(np.uint32) << np.uint32(1) | flag, mask)
    else:
        _raise(states, "failed", at, epochs << _OUTCOME_BITS | np.uint64(outcome), mask)


def are_counted(entries: Entries) -> Array:
    """Return a mask of the entries about losses and requests that count against a sample."""
    kinds, codes = entries["kind"], entries["code"]
    is_request = (codes == _RESTART) | (codes == _RETRY) | (codes <= _CANNOT_RUN)
    mask: Array = ((kinds == _LOST) & (codes == 0)) | ((kinds == _ENDED) & is_request)
    return mask


def add_counts(states: Array, at: Array, counted: Array) -> None:
    """Count losses and requests, except those up to the epoch under which the sample runs again.

    Args:
        states: Different samples, as `STATE`.
        at: For each loss or request, the place of its sample in `states`.
        counted: Losses and requests, with the fields `kind` and `epoch` of their entries.
    """
    counts = counted["epoch"] > states["forgotten"][at]
    is_loss = counted["kind"] == _LOST
    np.add.at(states["losses"], at[counts & is_loss], 1)
    np.add.at(states["requests"], at[counts & ~is_loss], 1)


def invalidate(states: Array, epoch: int) -> None:
    """Make the outcomes up to an epoch invalid."""
    np.maximum(states["invalid"], np.uint32(epoch), out=states["invalid"])


def run_again(states: Array, epoch: int, *, anew: bool) -> None:
    """Let samples run again.

    What was counted is forgotten; the caller counts what belongs to later epochs.

    Args:
        states: Different samples, as `STATE`.
        epoch: The epoch up to which their attempts do not count.
        anew: Whether they run `cmd`, because their inputs have changed.
    """
    invalidate(states, epoch)
    np.maximum(states["forgotten"], np.uint32(epoch), out=states["forgotten"])
    if anew:
        np.maximum(states["anew"], np.uint32(epoch), out=states["anew"])
    states["losses"] = states["requests"] = 0


def is_exhausted(states: Array, max_retries: int) -> Array:
    """Return a mask of the samples that were lost or have requested another run too often."""
    mask: Array = (states["losses"] >= POISON_LIMIT) | (states["requests"] > max_retries)
    return mask


def outcomes(states: Array, max_retries: int) -> Array:
    """Return the `Outcome` of samples: that of an attempt, or failure after too many losses or requests."""
    result: Array = np.where(is_exhausted(states, max_retries), np.uint8(_FAILED), np.uint8(_OPEN))
    failed, finished, invalid = states["failed"], states["finished"], states["invalid"]
    is_failed = failed >> _OUTCOME_BITS > invalid
    result[is_failed] = failed[is_failed] & _OUTCOME_MASK
    is_finished = finished >> np.uint32(1) > invalid
    result[is_finished] = np.where(finished[is_finished] & 1, _STOPPED_STUDY, _FINISHED)
    return result


def modes(states: Array) -> Array:
    """Return the `RunMode` of the next attempts.

    The next attempt runs `restart` if an attempt has run before, except when the last one has requested `cmd`, or
    when the inputs of the sample have changed since. An attempt that could not start does not count: a `restart`
    that it should have run is not forgotten.
    """
    run = states["run"]
    result: Array = np.where(run & np.uint32(1), RunMode.AGAIN, RunMode.RESTART).astype(np.uint8)
    result[run >> np.uint32(1) <= states["anew"]] = RunMode.AGAIN
    result[run == 0] = RunMode.FIRST
    return result


def last_codes(states: Array) -> Array:
    """Return the exit codes of the last attempts that ended by themselves; 0 without one."""
    last = states["last"]
    codes: Array = np.where(last, (last & _CODE_MASK).astype(np.int64) - _CODE_OFFSET, 0)
    return codes
