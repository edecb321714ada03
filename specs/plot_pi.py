"""Collect the estimates of pi that the samples have printed, and plot them: pi.csv and pi.svg.

    plot_pi.py DIRECTORY PATTERN

DIRECTORY holds one directory ``POINTS.<number>`` for each value of the parameter; PATTERN finds the
output files below it. Needs nothing but Python.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 70, 24, 56, 64
BLUE, RED, GREY = "#2a6fb0", "#c0392b", "#666666"


def read_estimates(directory: Path, pattern: str) -> dict[int, list[float]]:
    """Return the estimates for each number of points."""
    estimates: dict[int, list[float]] = {}
    for path in sorted(directory.glob(pattern)):
        points = int(path.relative_to(directory).parts[0].rpartition(".")[2])
        estimates.setdefault(points, []).append(float(path.read_text()))
    return dict(sorted(estimates.items()))


def write_table(estimates: dict[int, list[float]], path: Path) -> None:
    """Write mean and standard deviation for each number of points, and print them."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("points", "samples", "mean", "standard_deviation"))
        for points, values in estimates.items():
            mean, deviation = statistics.fmean(values), statistics.stdev(values)
            writer.writerow((points, len(values), f"{mean:.5f}", f"{deviation:.5f}"))
            print(f"{points:>8} points: {mean:.5f} +- {deviation:.5f} ({len(values)} samples)")


class Plot:
    """A strip of dots for each number of points, with mean and standard deviation."""

    def __init__(self, estimates: dict[int, list[float]]) -> None:
        self._estimates = estimates
        values = [value for column in estimates.values() for value in column]
        reach = 1.1 * max(abs(value - math.pi) for value in values)
        self._low, self._high = math.pi - reach, math.pi + reach

    def _y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def _x(self, column: int) -> float:
        return LEFT + (column + 0.5) * (WIDTH - LEFT - RIGHT) / len(self._estimates)

    def _step(self) -> float:
        """Return the distance of grid lines: 1, 2 or 5 times a power of ten, so that there are 4 to 8."""
        reach = self._high - self._low
        power = 10 ** math.floor(math.log10(reach / 8))
        return next(power * digit for digit in (1, 2, 5, 10) if reach / (power * digit) <= 8)

    def svg(self) -> str:
        """Return the whole picture."""
        begin = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="14">'
        )
        return "\n".join((begin, *self._frame(), *self._columns(), "</svg>", ""))

    def _frame(self) -> Iterator[str]:
        yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        yield f'<text x="{LEFT}" y="28" font-size="17">Estimates of pi, one dot per sample</text>'
        step = self._step()
        tick = math.ceil(self._low / step) * step
        while tick <= self._high:
            y = self._y(tick)
            yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end" fill="{GREY}">{tick:.2f}</text>'
            tick += step
        y = self._y(math.pi)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{RED}"/>'
        yield f'<text x="{WIDTH - RIGHT}" y="{y - 6:.1f}" text-anchor="end" fill="{RED}">pi</text>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle" fill="{GREY}">points per sample</text>'

    def _columns(self) -> Iterator[str]:
        for column, (points, values) in enumerate(self._estimates.items()):
            x = self._x(column)
            for number, value in enumerate(values):
                spread = 60 * ((number * 0.618) % 1 - 0.5)  # side by side, the same in every run
                yield (
                    f'<circle cx="{x + spread:.1f}" cy="{self._y(value):.1f}" r="3.5" '
                    f'fill="{BLUE}" fill-opacity="0.55"/>'
                )
            mean, deviation = statistics.fmean(values), statistics.stdev(values)
            bar = round(x + 48, 1)
            low, high = self._y(mean - deviation), self._y(mean + deviation)
            yield f'<line x1="{bar}" x2="{bar}" y1="{low:.1f}" y2="{high:.1f}" stroke="black" stroke-width="2"/>'
            yield f'<path d="M{bar - 6} {self._y(mean):.1f}h12" stroke="black" stroke-width="2"/>'
            y = HEIGHT - BOTTOM + 22
            yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{points}</text>'


def main() -> None:
    """Read the estimates and write both files into the current directory."""
    estimates = read_estimates(Path(sys.argv[1]), sys.argv[2])
    if not estimates:
        sys.exit(f"no output of a sample matches {sys.argv[2]} in {sys.argv[1]}")
    write_table(estimates, Path("pi.csv"))
    Path("pi.svg").write_text(Plot(estimates).svg())


if __name__ == "__main__":
    main()
