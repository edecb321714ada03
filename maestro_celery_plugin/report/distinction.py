"""What distinguishes some samples from others: for each column, the range or the value that tells them apart best.

A range of a column of numbers maximises the share of the samples inside it minus the share of the others inside it.
Its limits are searched in all values, so a chance result is likely; `Rule.chance` takes the number of possible ranges
into account, and `distinctions` drops what may be chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Rule", "distinctions", "suspicion"]

Array = np.ndarray[Any, Any]

# A rule is reported if a chance result of this strength in any column is less likely than this, and if the two shares
# differ by at least `_LEAST_GAIN`.
_CHANCE_LIMIT = 0.01
_LEAST_GAIN = 0.25
# A range needs two limits; it must be this much better than one limit.
_RANGE_GAIN = 0.05
# Columns with more different texts are names, not categories.
_MOST_TEXTS = 10_000
# A second rule is reported if this share of the samples obeys it.
_JOINT_SHARE = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule that most of some samples and few of the others obey.

    Attributes:
        column: The column.
        words: The rule: ``X > 0.91``.
        hits: Number of the samples that obey it.
        samples: Number of the samples.
        false_hits: Number of the others that obey it.
        others: Number of the others.
        candidates: Number of rules from which this one is the best.
        mask: Which of all samples obey it.
    """

    column: str
    words: str
    hits: int
    samples: int
    false_hits: int
    others: int
    candidates: float
    mask: Array = dataclasses.field(repr=False)

    @property
    def gain(self) -> float:
        """The share of the samples that obey the rule minus the share of the others that do."""
        return self.hits / self.samples - self.false_hits / max(1, self.others)

    def log_chance(self, columns: int) -> float:
        """Return an upper limit of the logarithm of the chance that a rule of this strength is found in random data.

        The chance that a random choice of as many samples has at least as many hits (hypergeometric distribution),
        times the number of rules. All of 5 samples in a range with 5 of 30 rows: 1 / C(30, 5) = 7e-6 for one range.
        """
        inside = self.hits + self.false_hits
        rows = self.samples + self.others
        first = (
            _log_choices(inside, self.hits)
            + _log_choices(rows - inside, self.samples - self.hits)
            - _log_choices(rows, self.samples)
        )
        # The ratio of each term of the tail and the one before falls, so a geometric series is an upper limit.
        ratio: float = (inside - self.hits) * (self.samples - self.hits)
        ratio /= (self.hits + 1) * (rows - inside - self.samples + self.hits + 1)
        tail = first - math.log1p(-ratio) if ratio < 1 else 0.0
        return math.log(self.candidates * columns) + min(0.0, tail)


def _log_choices(count: int, chosen: int) -> float:
    """Return the logarithm of the number of choices of some of `count` things."""
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def distinctions(columns: Mapping[str, Array], is_sample: Array) -> list[Rule]:
    """Return the rules that distinguish samples from others, the best one first; none if all may be chance.

    If a second rule tells the samples apart from those others that obey the first one, both follow as a joint rule.

    Args:
        columns: The values of each column: numbers, with NaN for a missing one, or texts.
        is_sample: Which rows are the samples.
    """
    found = _significant(columns, is_sample)
    if found:
        joint = _joint(found[0], columns, is_sample)
        if joint is not None:
            found.insert(0, joint)
    return found


def suspicion(columns: Mapping[str, Array], is_sample: Array) -> Rule | None:
    """Return a rule that all of some samples and none of the others obey, although it may be chance; None without one.

    One sample alone obeys such a rule in any column.
    """
    if is_sample.sum() < 2 or is_sample.all():
        return None
    rules = [rule for name, values in columns.items() if (rule := _best_rule(name, values, is_sample)) is not None]
    whole = [rule for rule in rules if rule.hits == rule.samples and not rule.false_hits]
    return min(whole, key=lambda rule: rule.log_chance(len(columns)), default=None)


def _significant(columns: Mapping[str, Array], is_sample: Array) -> list[Rule]:
    if not is_sample.any() or is_sample.all():
        return []
    rules = [rule for name, values in columns.items() if (rule := _best_rule(name, values, is_sample)) is not None]
    limit = math.log(_CHANCE_LIMIT)
    found = [rule for rule in rules if rule.gain >= _LEAST_GAIN and rule.log_chance(len(columns)) < limit]
    return sorted(found, key=lambda rule: -rule.gain)


def _joint(first: Rule, columns: Mapping[str, Array], is_sample: Array) -> Rule | None:
    """Return the first rule together with the best one of another column among the rows that obey it."""
    inside = first.mask
    others = {name: values[inside] for name, values in columns.items() if name != first.column}
    for second in _significant(others, is_sample[inside]):
        if second.hits >= _JOINT_SHARE * second.samples:
            mask = np.zeros(len(inside), bool)
            mask[np.flatnonzero(inside)[second.mask]] = True
            return _rule(f"{first.column}, {second.column}", f"{first.words} and {second.words}", mask, is_sample, 1.0)
    return None


def _rule(column: str, words: str, mask: Array, is_sample: Array, candidates: float) -> Rule:
    hits, samples = int((mask & is_sample).sum()), int(is_sample.sum())
    return Rule(
        column=column,
        words=words,
        hits=hits,
        samples=samples,
        false_hits=int(mask.sum()) - hits,
        others=len(is_sample) - samples,
        candidates=candidates,
        mask=mask,
    )


def _best_rule(name: str, values: Array, is_sample: Array) -> Rule | None:
    return _best_range(name, values, is_sample) if values.dtype.kind == "f" else _best_text(name, values, is_sample)


def _best_text(name: str, values: Array, is_sample: Array) -> Rule | None:
    """Return the rule for the text that distinguishes the samples best."""
    texts, numbers = np.unique(values, return_inverse=True)
    if not 1 < len(texts) <= _MOST_TEXTS:
        return None
    inside = np.bincount(numbers, is_sample, len(texts)) / is_sample.sum()
    outside = np.bincount(numbers, ~is_sample, len(texts)) / (~is_sample).sum()
    best = int(np.argmax(inside - outside))
    return _rule(name, f"{name} = {texts[best] or '(none)'}", numbers == best, is_sample, float(len(texts)))


def _best_range(name: str, values: Array, is_sample: Array) -> Rule | None:
    """Return the rule for the range, or for the limit, that distinguishes the samples best."""
    known = ~np.isnan(values)
    numbers, places = np.unique(values[known], return_inverse=True)
    if len(numbers) < 2:
        return None
    samples = is_sample[known]
    weights = np.bincount(places, samples, len(numbers)) / max(1, int(is_sample.sum()))
    weights -= np.bincount(places, ~samples, len(numbers)) / max(1, int((~is_sample).sum()))
    # The sum of the weights in numbers[start:stop] is sums[stop] - sums[start].
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    upper, lower = int(np.argmin(sums)), int(np.argmax(sums))
    starts = np.minimum.accumulate(sums)
    stop = int(np.argmax(sums - starts))
    start = int(np.argmin(sums[: stop + 1]))
    above, below, between = sums[-1] - sums[upper], sums[lower], sums[stop] - sums[start]
    candidates = 2.0 * len(numbers)
    if between > max(above, below) + _RANGE_GAIN and start < stop:
        candidates = len(numbers) ** 2 / 2
    elif above >= below:
        start, stop = upper, len(numbers)
    else:
        start, stop = 0, lower
    if start >= stop or (start == 0 and stop == len(numbers)):
        return None
    with np.errstate(invalid="ignore"):
        mask = (values >= numbers[start]) & (values <= numbers[stop - 1])
    return _rule(name, _range_words(name, numbers, start, stop), mask, is_sample, candidates)


def _range_words(name: str, numbers: Array, start: int, stop: int) -> str:
    if stop - start == 1:
        return f"{name} = {numbers[start]:.15g}"
    low = short_between(float(numbers[start - 1]), float(numbers[start])) if start else None
    high = short_between(float(numbers[stop - 1]), float(numbers[stop])) if stop < len(numbers) else None
    if low is None:
        return f"{name} < {high}"
    return f"{name} > {low}" if high is None else f"{low} < {name} < {high}"


def short_between(low: float, high: float) -> str:
    """Return the number with the fewest digits that is greater than `low` and less than `high`, if there is one."""
    for digits in range(1, 17):
        text = f"{(low + high) / 2:.{digits}g}"
        if low < float(text) < high:
            return text
    return repr(low)
