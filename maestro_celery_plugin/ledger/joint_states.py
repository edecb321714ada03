"""Entries about many step records, applied to the states of their samples together.

A look at a large study finds a few entries of each of thousands of step records. Each operation of NumPy takes a
microsecond, for one number as for a hundred: so the rules are applied to the samples of all step records at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from maestro_celery_plugin.ledger import attempt_rules as rules
from maestro_celery_plugin.ledger.attempt_rules import STATE
from maestro_celery_plugin.ledger.entries import Entries, Kind, kind_mask
from maestro_celery_plugin.ledger.sample_states import SampleStates

__all__ = ["apply_together"]

Array = np.ndarray[Any, Any]

# What concerns more than one attempt, and is rare.
_IS_RARE = kind_mask(Kind.SENT, Kind.CANCELLED, Kind.RERUN, Kind.INVALID)
_STARTED = int(Kind.STARTED)
# Bits for the number of a sample beside that of its step record.
_SAMPLE_BITS = 40
_SAMPLE_MASK = (1 << _SAMPLE_BITS) - 1


def apply_together(records: Sequence[SampleStates], edges: Array, entries: Entries) -> None:
    """Apply entries to the states of several step records, as `SampleStates.apply` does for each of them.

    Args:
        records: The states of the step records.
        edges: For each of them, the place of its first entry; at the end, the number of entries.
        entries: The entries in the order of the step records.
    """
    owners = np.repeat(np.arange(len(records)), np.diff(edges))
    is_alone = _are_alone(records, owners, entries)
    for number in np.flatnonzero(is_alone).tolist():
        records[number].apply(entries[edges[number] : edges[number + 1]])
    places = np.flatnonzero(rules.IS_ATTEMPT[entries["kind"]] & ~is_alone[owners])
    if len(places):
        _apply_attempts(records, owners[places], entries[places])


def _are_alone(records: Sequence[SampleStates], owners: Array, entries: Entries) -> Array:
    """Return a mask of the step records with an entry that is not simply about an attempt."""
    sizes = np.array([len(record) for record in records])
    is_special = _IS_RARE[entries["kind"]] | rules.are_counted(entries) | (entries["start"] >= sizes[owners])
    mask: Array = np.bincount(owners[is_special], minlength=len(records)) > 0
    return mask | (sizes > _SAMPLE_MASK)


def _apply_attempts(records: Sequence[SampleStates], owners: Array, entries: Entries) -> None:
    """Apply entries about attempts at samples of several step records.

    Args:
        records: The states of the step records.
        owners: The place of the step record of each entry in `records`.
        entries: The entries.
    """
    keys, at = np.unique(owners << _SAMPLE_BITS | entries["start"].astype(np.int64), return_inverse=True)
    samples = keys & _SAMPLE_MASK
    numbers, firsts = np.unique(keys >> _SAMPLE_BITS, return_index=True)
    has_started = np.bincount(owners[entries["kind"] == _STARTED], minlength=len(records)) > 0
    own, edges = [records[number] for number in numbers.tolist()], [*firsts.tolist(), len(samples)]
    words = [record.words_of(samples[a:b]) for record, (a, b) in zip(own, itertools.pairwise(edges), strict=True)]
    states = np.concatenate(words).view(STATE).reshape(-1)
    rules.apply_attempts(states, at, entries)
    for record, (a, b), started in zip(own, itertools.pairwise(edges), has_started[numbers].tolist(), strict=True):
        record.replace_states(samples[a:b], states[a:b], has_started=started)
