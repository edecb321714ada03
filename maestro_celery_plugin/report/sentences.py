"""Sentences of an explanation, and one explanation for many step records of which the same is to be said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from maestro_celery_plugin.ledger.sample_facts import Counts
from maestro_celery_plugin.report.model import StepStatus
from maestro_celery_plugin.report.terminal import outcome_words

__all__ = ["Sentence", "Who", "explained", "fixed"]

# The number of step records that a title names.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Who:
    """What a sentence is about: one step record, or several.

    Attributes:
        steps: The step records.
        samples: Their samples, added up.
    """

    steps: list[StepStatus]
    samples: Counts

    @classmethod
    def of(cls, steps: list[StepStatus]) -> Who:
        """Return the samples of step records."""
        names = [field.name for field in dataclasses.fields(Counts)]
        return cls(steps, Counts(**{name: sum(getattr(step.samples, name) for step in steps) for name in names}))

    @property
    def is_one(self) -> bool:
        """Whether it is about one step record."""
        return len(self.steps) == 1


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence about a step record.

    Attributes:
        meaning: Equal for sentences that differ in their numbers of samples, or in the names of step records, only.
        words: Returns the sentence.
    """

    meaning: str
    words: Callable[[Who], str]


def fixed(words: str) -> Sentence:
    """Return a sentence that is the same for one and for many step records."""
    return Sentence(words, lambda _: words)


def explained(steps: Iterable[tuple[StepStatus, list[Sentence]]]) -> Iterator[tuple[str, list[str]]]:
    """Yield a title and sentences for each group of step records with the same state and the same explanation."""
    groups: dict[tuple[str, ...], list[tuple[StepStatus, list[Sentence]]]] = {}
    for step, sentences in steps:
        key = (step.step, step.state, *(sentence.meaning for sentence in sentences))
        groups.setdefault(key, []).append((step, sentences))
    for group in groups.values():
        members = [step for step, _ in group]
        who = Who.of(members)
        yield _title(members, who.samples.failed), [sentence.words(who) for sentence in group[0][1]]


def _title(steps: list[StepStatus], failed: int) -> str:
    """Return ``sim_X.1, sim_X.2  FINISHED, 5 failed``, with the number of further step records."""
    names = ", ".join(step.name for step in steps[:_NAMED])
    more = f" and {len(steps) - _NAMED} more step records" if len(steps) > _NAMED else ""
    return f"{names}{more}  {outcome_words(steps[0].state, failed)}"
