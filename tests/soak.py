"""Soak: simulated clusters and broken studies of real processes in turn, until it is stopped: ``python -m soak``."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from chaos.result import read_results, sum_of

# The seeds of each turn: about a minute of each kind.
SIMULATED, BROKEN = 40, 2


def main() -> int:
    """Run both kinds in turn until a signal; print the sum, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed of both")
    parser.add_argument("--profile", default="storm", help="the profile of the simulation")
    parser.add_argument("--place", choices=("local", "slurm", "both"), default="both", help="where workers run")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        simulated, broken = Path(directory, "simulated"), Path(directory, "broken")
        with contextlib.suppress(KeyboardInterrupt):
            _take_turns(options, simulated, broken)
        failed = _print_sum(simulated, broken)
    print(f"{(time.monotonic() - begin) / 60:.0f} minutes", flush=True)
    return int(failed)


def _take_turns(options: argparse.Namespace, simulated: Path, broken: Path) -> None:
    turn = 0
    while True:
        first = ("--seed", str(options.seed + turn * SIMULATED), "--count", str(SIMULATED))
        _run("simulation", *first, "--profile", options.profile, "--keep-going", "--results", str(simulated))
        first = ("--seed", str(options.seed + turn * BROKEN), "--count", str(BROKEN))
        _run("chaos", *first, "--place", options.place, "--results", str(broken))
        turn += 1


def _run(module: str, *options: str) -> None:
    """Run a module to its end; if this process is to end, let it remove what it has started."""
    # A session of its own: Ctrl-C reaches it once, from here.
    process = subprocess.Popen([sys.executable, "-m", module, *options], start_new_session=True)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _print_sum(simulated: Path, broken: Path) -> bool:
    """Print what has been done; return whether anything was wrong."""
    results = read_results(broken)
    lines, failed = _sum_of_simulated(simulated)
    print("Simulated clusters:", *lines, "Real processes:", *sum_of(results), sep="\n")
    return failed or any(result.wrong for result in results)


def _sum_of_simulated(path: Path) -> tuple[Iterator[str], bool]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    counts, failed = Counter[str](), [row["seed"] for row in rows if row["violations"]]
    for row in rows:
        counts.update(row["counts"])
    lines = (f"{number:>12,}  {name}" for name, number in sorted(counts.items()) if number)
    return iter([*lines, f"{len(rows)} seeds, {len(failed)} failed {failed[:50]}"]), bool(failed)


if __name__ == "__main__":
    sys.exit(main())
