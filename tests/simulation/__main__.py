"""Run simulations: ``python -m simulation --seed 7 --profile nfs``, or many seeds with ``--count``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from simulation import scale
from simulation.planted import PLANTED, plant
from simulation.profiles import PROFILES
from simulation.world import Result, simulate


def main() -> int:
    """Run the seeds, print the counts, and return 1 if anything has happened that must not."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="number of seeds; 0 for all until stopped")
    parser.add_argument("--steps", type=int, default=2_000_000, help="largest number of steps of a seed")
    parser.add_argument("--profile", choices=(*PROFILES, "scale"), default="storm")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--keep-going", action="store_true", help="continue after a seed that fails")
    parser.add_argument("--planted", choices=sorted(PLANTED), help="break one rule of the product")
    parser.add_argument("--results", type=Path, help="append a line of JSON per seed to this file, and print no sum")
    options = parser.parse_args()
    if options.profile == "scale":
        scale.report()
        return 0
    if options.planted:
        plant(options.planted)
    counts: Counter[str] = Counter()
    failed: list[int] = []
    begin, seed = time.monotonic(), options.seed
    try:
        while not options.count or seed < options.seed + options.count:
            result = simulate(seed, options.profile, options.steps, keep_log=options.trace)
            counts.update(result.counts)
            counts["simulated seconds"] += int(result.simulated_s)
            if options.results:
                _append(options.results, result)
            if result.violations:
                failed.append(seed)
                _report(result)
                if not options.keep_going:
                    break
            seed += 1
            if options.trace:
                print("\n".join(result.log or []))
                print(f"trace {result.trace_hash}, {result.steps} steps")
    except KeyboardInterrupt:
        pass
    finally:
        if not options.results:
            _summarize(counts, seed - options.seed, failed, time.monotonic() - begin)
    return 1 if failed else 0


def _append(path: Path, result: Result) -> None:
    counts = {**result.counts, "simulated seconds": int(result.simulated_s)}
    with path.open("a") as file:
        file.write(json.dumps({"seed": result.seed, "violations": result.violations, "counts": counts}) + "\n")


def _report(result: Result) -> None:
    print(f"seed {result.seed} of {result.profile}: {len(result.violations)} violations")
    for violation in result.violations[:10]:
        print(f"  {violation}")
    sys.stdout.flush()


def _summarize(counts: Counter[str], seeds: int, failed: list[int], seconds: float) -> None:
    for name, number in sorted(counts.items()):
        if number:
            print(f"{number:>12,}  {name}")
    print(f"{seeds} seeds in {seconds:.1f} s, {len(failed)} failed {failed[:50]}")


if __name__ == "__main__":
    sys.exit(main())
