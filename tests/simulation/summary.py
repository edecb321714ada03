"""The sum of what has happened in some seeds: samples, attempts, reruns with their reasons, and faults by kind."""

from __future__ import annotations

from collections import Counter

from simulation.world import Result

__all__ = ["Summary"]

_FAULT, _AGAIN, _SAMPLES, _ATTEMPTS = "fault: ", "again: ", "samples ", "attempts "
_GROUPS = {"messages ": "Messages", "allocations ": "Allocations", "world: ": "Worlds"}


class Summary:
    """Adds up results.

    Attributes:
        failed: The seeds with a violation.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0
        self._seeds = 0
        self.failed: list[int] = []

    def add(self, result: Result) -> None:
        """Add a result."""
        self._seeds += 1
        self._counts.update(result.counts)
        self._seconds += result.simulated_s
        if result.violations:
            self.failed.append(result.seed)

    def text(self, real_s: float) -> str:
        """Return the sum as lines.

        Args:
            real_s: How long the simulations have taken, in seconds.
        """
        lines = [
            *self._group("Samples", _SAMPLES, all=self._counts["samples"]),
            *self._group("Attempts", _ATTEMPTS),
            *self._group("Run again because", _AGAIN),
            *self._group("Faults", _FAULT),
        ]
        for prefix, title in _GROUPS.items():
            lines += self._group(title, prefix)
        failed = f"{len(self.failed)} with a violation{': ' if self.failed else ''}"
        numbers = ", ".join(map(str, self.failed[:50]))
        lines.append(f"{self._seeds:,} seeds, {self._seconds / 3600:,.1f} simulated hours in {real_s:.1f} s;")
        return "\n".join([*lines, f"{failed}{numbers}"])

    def _group(self, title: str, prefix: str, **first: int) -> list[str]:
        found = {name.removeprefix(prefix): n for name, n in sorted(self._counts.items()) if name.startswith(prefix)}
        rows = [f"{number:>14,}  {name}" for name, number in {**first, **found}.items() if number]
        return [title, *rows] if rows else []
