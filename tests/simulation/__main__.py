"""Run simulations: ``python -m simulation --seed 7 --profile nfs``, or many seeds with ``--count``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from simulation import scale
from simulation.planted import PLANTED, plant
from simulation.profiles import PROFILES
from simulation.shrink import shrink
from simulation.summary import Summary
from simulation.world import Result, simulate

# With a planted fault, the first violation is enough, and a study that has not ended soon never ends.
_PLANTED: dict[str, Any] = {"stops": True, "limit_s": 300.0}


def main() -> int:
    """Run the seeds, print the sum, and return 1 if anything has happened that must not."""
    options = _options()
    if options.profile == "scale":
        scale.report([_size(text) for text in options.size or ()] or scale.SIZES)
        return 0
    if options.planted:
        plant(options.planted)
    if options.shrink:
        return shrink(options.seed, options.profile, options.steps)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    summary, begin = Summary(), time.monotonic()
    if not options.count:
        print(f"Seeds from {options.seed} on; Ctrl-C or SIGTERM ends this with the sum.", flush=True)
    _run(options, summary, signals)
    if signals:
        print("interrupted")
    if not options.results:
        print(summary.text(time.monotonic() - begin))
    return 1 if summary.failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="number of seeds; 0 for all until stopped")
    parser.add_argument("--steps", type=int, default=2_000_000, help="largest number of steps of a seed")
    parser.add_argument("--profile", choices=(*PROFILES, "scale"), default="storm")
    parser.add_argument(
        "--size",
        action="append",
        metavar="SAMPLES:WORKERS:SLOTS",
        help="a size for the profile scale, instead of the default ones; may be repeated",
    )
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--keep-going", action="store_true", help="continue after a seed that fails")
    parser.add_argument("--planted", choices=sorted(PLANTED), help="break one rule of the product")
    parser.add_argument("--shrink", action="store_true", help="find the fewest faults with which the seed still fails")
    parser.add_argument("--results", type=Path, help="append a line of JSON per seed to this file, and print no sum")
    return parser.parse_args()


def _run(options: argparse.Namespace, summary: Summary, signals: list[int]) -> None:
    """Run seeds until a signal has come; the seed that runs then is finished, which takes seconds."""
    seed = options.seed
    while not signals and (not options.count or seed < options.seed + options.count):
        changes = _PLANTED if options.planted else {}
        result = simulate(seed, options.profile, options.steps, keep_log=options.trace, **changes)
        summary.add(result)
        if options.results:
            _append(options.results, result)
        seed += 1
        if options.trace:
            print("\n".join(result.log or []))
            print(f"trace {result.trace_hash}, {result.steps} steps")
        if result.violations:
            _report(result)
            if not options.keep_going:
                return


def _append(path: Path, result: Result) -> None:
    counts = {**result.counts, "simulated seconds": int(result.simulated_s)}
    with path.open("a") as file:
        file.write(json.dumps({"seed": result.seed, "violations": result.violations, "counts": counts}) + "\n")


def _size(text: str) -> tuple[int, int, int]:
    samples, workers, slots = map(int, text.split(":"))
    return samples, workers, slots


def _report(result: Result) -> None:
    print(f"seed {result.seed} of {result.profile}: {len(result.violations)} violations")
    for violation in result.violations[:10]:
        print(f"  {violation}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
