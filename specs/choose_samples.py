"""Choose the next samples: `maestro-celery add-samples --from-command` runs this program.

It reads the samples that have ended, one JSON object per line, fits a Gaussian process to their results, and prints the
points with the largest expected improvement. It prints nothing when no point promises a gain, which ends the loop. The
file best.csv has the best point after each iteration. Needs nothing but Python.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

BATCH, CANDIDATES = 4, 400
LENGTH, NOISE = 0.35, 1e-6  # of the kernel, for coordinates between 0 and 1
SMALLEST_GAIN = 1e-4

Point = tuple[float, float]


def kernel(a: Point, b: Point) -> float:
    """Return the covariance of two points."""
    return math.exp(-math.dist(a, b) ** 2 / (2 * LENGTH**2))


class Model:
    """A Gaussian process through the results, by Cholesky's decomposition (Rasmussen and Williams, algorithm 2.1)."""

    def __init__(self, points: list[Point], results: list[float]) -> None:
        self.points, self.mean = list(points), sum(results) / len(results)
        self.lower: list[list[float]] = []
        for i, point in enumerate(points):
            row = self._solved([kernel(point, other) for other in points[:i]])
            self.lower.append([*row, math.sqrt(1 + NOISE - sum(value**2 for value in row))])
        weights = self._solved([result - self.mean for result in results])
        for i in reversed(range(len(weights))):
            weights[i] /= self.lower[i][i]
            for j in range(i):
                weights[j] -= self.lower[i][j] * weights[i]
        self.weights = weights

    def _solved(self, right: list[float]) -> list[float]:
        """Return the solution of the lower triangular system."""
        solution: list[float] = []
        for value, row in zip(right, self.lower, strict=False):
            value -= sum(a * b for a, b in zip(row, solution, strict=False))
            solution.append(value / row[len(solution)])
        return solution

    def predict(self, point: Point) -> tuple[float, float]:
        """Return the mean and the standard deviation at a point."""
        covariances = [kernel(point, other) for other in self.points]
        mean = self.mean + sum(a * b for a, b in zip(covariances, self.weights, strict=True))
        variance = 1 - sum(value**2 for value in self._solved(covariances))
        return mean, math.sqrt(max(variance, 1e-12))

    def gain(self, point: Point, best: float) -> float:
        """Return the expected improvement on the best result."""
        mean, deviation = self.predict(point)
        z = (best - mean) / deviation
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return (best - mean) * (1 + math.erf(z / math.sqrt(2))) / 2 + deviation * density


def next_points(points: list[Point], results: list[float]) -> list[Point]:
    """Return the points of the next batch; after each, the model takes its prediction for its result."""
    chance, best = random.Random(len(points)), min(results)  # noqa: S311 (no secret)
    around = min(zip(results, points, strict=True))[1]
    candidates = [(chance.random(), chance.random()) for _ in range(CANDIDATES)]
    candidates += [
        tuple(min(1.0, max(0.0, chance.gauss(value, 0.03))) for value in around)  # type: ignore[misc]
        for _ in range(CANDIDATES)
    ]
    points, results, chosen = list(points), list(results), []
    for _ in range(BATCH):
        model = Model(points, results)
        point = max(candidates, key=lambda one: model.gain(one, best))
        if model.gain(point, best) < SMALLEST_GAIN:
            break
        chosen.append(point)
        points.append(point)
        results.append(model.predict(point)[0])
    return chosen


def main() -> None:
    """Read the samples, note the best one, and print the next ones."""
    samples = [sample for sample in map(json.loads, sys.stdin) if sample["state"] == "FINISHED"]
    points = [(sample["values"]["X"], sample["values"]["Y"]) for sample in samples]
    results = [float(Path(sample["directory"], "result.txt").read_text()) for sample in samples]
    result, (x, y) = min(zip(results, points, strict=True))
    with Path("best.csv").open("a") as file:
        file.write(f"{len(samples)},{x:.4f},{y:.4f},{result:.6f}\n")
    for x, y in next_points(points, results):
        print(json.dumps({"X": round(x, 4), "Y": round(y, 4)}))


if __name__ == "__main__":
    main()
