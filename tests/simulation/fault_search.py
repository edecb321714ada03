"""Hypothesis looks for a list of faults with which a calm study breaks a promise; delta debugging shrinks the list.

Hypothesis would shrink it as well, with ten times as many simulations (`--thorough`); then times and numbers are small, too.

``python -m simulation.fault_search --examples 500 --place remote``
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from simulation.filesystem import Caching
from simulation.misfortune import KINDS, Fault
from simulation.planted import PLANTED, plant
from simulation.shrink import fewest
from simulation.world import simulate

__all__ = ["search"]

# A study of two dependent steps and one more; all faults happen in its first minutes.
_STUDY: dict[str, Any] = {
    "records": 3,
    "samples": 5,
    "slots": 2,
    "mean_s": 3.0,
    "request_share": 0.2,
    "faults_end_s": 60.0,
    "retry_delay_s": 0.0,
    "limit_s": 200.0,
}
_PLACES: dict[str, dict[str, Any]] = {
    "local": {"workers": "local", "nodes": 1},
    "remote": {"workers": "remote", "nodes": 2, "caching": Caching()},
    "allocation": {"workers": "allocation", "nodes": 2, "caching": Caching(), "walltime_s": 120, "queue_s": 5.0},
}
# The places of the faults that do not happen everywhere.
_PLACES_OF = {
    "cut power": ("local",),
    "lose home": ("remote", "allocation"),
    "preempt": ("allocation",),
    "silence": ("allocation",),
}


class _BrokenError(AssertionError):
    """A list of faults breaks a promise."""


def search(place: str, examples: int, *, is_thorough: bool = False) -> list[str]:
    """Return the smallest list of faults that was found, and what is wrong with it, as lines; empty without one."""
    kinds = [kind for kind in KINDS if place in _PLACES_OF.get(kind, _PLACES)]
    fault = st.builds(Fault, st.integers(0, 59).map(float), st.sampled_from(kinds), st.integers(0, 99))
    found: list[tuple[int, list[Fault]]] = []

    def violations(seed: int, faults: list[Fault]) -> list[str]:
        return simulate(seed, "calm", faults=faults, stops=True, **_STUDY, **_PLACES[place]).violations

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink) if is_thorough else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(faults=st.lists(fault, min_size=1, max_size=8), seed=st.integers(0, 9))
    def keeps_its_promises(faults: list[Fault], seed: int) -> None:
        if violations(seed, sorted(faults)):
            found.append((seed, sorted(faults)))
            raise _BrokenError

    try:
        keeps_its_promises()
    except _BrokenError:
        seed, faults = found[-1]
        faults = fewest(faults, lambda part: bool(violations(seed, part)))
        noun = "fault" if len(faults) == 1 else "faults"
        first = f"seed {seed} fails with {len(faults)} {noun}:"
        return [first, *map(str, faults), *violations(seed, faults)[:3]]
    return []


def main() -> int:
    """Search, print what was found, and return 1 if a list of faults breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m simulation.fault_search", description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="how many lists to try")
    parser.add_argument("--place", choices=sorted(_PLACES), default="local", help="where the workers are")
    parser.add_argument("--planted", choices=sorted(PLANTED), help="break one rule of the product")
    parser.add_argument("--thorough", action="store_true", help="let Hypothesis shrink the list")
    options = parser.parse_args()
    if options.planted:
        plant(options.planted)
    found = search(options.place, options.examples, is_thorough=options.thorough)
    print("\n  ".join(found) or f"{options.examples} lists of faults break no promise")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
