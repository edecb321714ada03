"""The report of a cancellation: what was ended, and what may still run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from maestro_celery_plugin.errors import EnsembleError

__all__ = ["CancelReport"]


class CancelReport:
    """What the cancellation of a study has done.

    Attributes:
        sentences: The report for the user.
        is_complete: Whether everything was ended, or was asked to end.
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.is_complete = True

    def add(self, sentence: str) -> None:
        """Report what was ended."""
        self.sentences.append(sentence)

    def add_left(self, sentence: str) -> None:
        """Report what may still run."""
        self.sentences.append(sentence)
        self.is_complete = False

    @contextlib.contextmanager
    def part(self, consequence: str) -> Iterator[None]:
        """Do one part of the cancellation; report its error, so that the other parts follow.

        Args:
            consequence: What an error means for the user, for example "Workers may still run".
        """
        try:
            yield
        except (OSError, EnsembleError, psutil.Error) as error:
            self.add_left(f"{consequence}: {error}")
