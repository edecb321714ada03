"""Problems of a specification: the checks yield them, a launch stops at the first one, and `validate` lists all.

A check is a generator of `Problem`. It goes on after each problem, so that no problem hides another one; what has no
meaning after a problem is not checked. A check may also return a value for the checks that follow (`Checked`).
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Generator, Iterator
from typing import TypeAlias, TypeVar

from maestro_celery_plugin.errors import SpecificationError

__all__ = ["Checked", "FaultError", "Kind", "Problem", "collected", "passed"]

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


class Kind(enum.Enum):
    """What follows from a problem."""

    FAULT = "fault"
    """The specification cannot be launched anywhere."""
    MACHINE = "machine"
    """This machine lacks something, such as a program; the specification may be for another machine."""
    WARNING = "warning"
    """The specification can be launched; it probably has another result than the user expects."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        where: Dotted path of the key; empty for the whole file.
        text: What was found, and what is allowed.
        kind: What follows from it.
    """

    where: str
    text: str
    kind: Kind = Kind.FAULT

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


# Checks that yield problems and return a value.
Checked: TypeAlias = Generator[Problem, None, T]


class FaultError(Exception):
    """A fault after which no check has a meaning."""

    def __init__(self, where: str, text: str) -> None:
        super().__init__(f"{where}: {text}")
        self.problem = Problem(where, text)


def passed(checks: Iterator[Problem] | Checked[T], file: str) -> T:
    """Run the checks of a launch, log their warnings, and return their value.

    Args:
        checks: The checks.
        file: Name of the specification, for messages.

    Raises:
        SpecificationError: for the first problem that is no warning.
    """
    try:
        while True:
            problem = next(checks)
            if problem.kind is not Kind.WARNING:
                raise SpecificationError.at(file, problem.where, problem.text)
            LOGGER.warning("%s: %s", file, problem)
    except FaultError as error:
        raise SpecificationError.at(file, error.problem.where, error.problem.text) from error
    except StopIteration as end:
        value: T = end.value
        return value


def collected(checks: Iterator[Problem]) -> list[Problem]:
    """Run checks to their end and return all problems, each once."""
    found: dict[Problem, None] = {}
    try:
        for problem in checks:
            found[problem] = None
    except FaultError as error:
        found[error.problem] = None
    except SpecificationError as error:  # of a check that stops at its first problem
        found[Problem(error.where, error.problem or str(error))] = None
    return list(found)
