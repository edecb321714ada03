"""The smallest case of a seed that fails: fewer rates of the profile, then fewer faults (delta debugging).

Each part of the world has random numbers of its own (`Kernel.stream`), so that the world without a fault is much like the
one with it until the time of the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulation.misfortune import Fault
from simulation.profiles import Profile, draw
from simulation.world import Result, simulate

__all__ = ["fewest", "shrink"]

# What a profile may have in addition to the faults with a time, with the value that has none of it.
_CALM: dict[str, Any] = {
    "error_rate": 0.0,
    "lost_answer_rate": 0.0,
    "wait_rate": 0.0,
    "lose_rate": 0.0,
    "double_rate": 0.0,
    "late_rate": 0.0,
    "unanswered_rate": 0.0,
    "reorders": False,
    "send_s": 0.0,
    "killer_share": 0.0,
    "poison": 0,
    "fail_share": 0.0,
    "hard_share": 0.0,
    "request_share": 0.0,
    "stop_share": 0.0,
    "long_share": 0.0,
    "retry_delay_s": 0.0,
    "repeats_failed": False,
    "collects": False,
    "moves": False,
    "studies": 1,
    "caching": None,
}


def fewest(faults: list[Fault], fails: Callable[[list[Fault]], bool]) -> list[Fault]:
    """Return a part of faults that still fails, and of which no fault can be left out (ddmin).

    Args:
        faults: Faults that fail.
        fails: Tells whether faults fail.
    """
    if fails([]):
        return []
    parts = 2
    while len(faults) >= 2:
        size = -(-len(faults) // parts)
        rests = [faults[:at] + faults[at + size :] for at in range(0, len(faults), size)]
        smaller = next((rest for rest in rests if fails(rest)), None)
        if smaller is not None:
            faults, parts = smaller, max(2, parts - 1)
        elif size == 1:
            break
        else:
            parts = min(len(faults), 2 * parts)
    return faults


def shrink(seed: int, profile: str, steps: int) -> int:
    """Print the fewest faults with which a seed still fails; return 1, or 0 if the seed does not fail."""
    first = simulate(seed, profile, steps, stops=True)
    if not first.violations:
        print(f"seed {seed} of {profile} does not fail")
        return 0
    kept = _calmest(draw(profile, seed), lambda changes: simulate(seed, profile, steps, faults=first.faults, stops=True, **changes))
    faults = fewest(
        first.faults, lambda faults: bool(simulate(seed, profile, steps, faults=faults, stops=True, **kept).violations)
    )
    result = simulate(seed, profile, steps, faults=faults, **kept)
    left_out = ", ".join(kept) or "nothing"
    print(f"seed {seed} of {profile} fails with {len(faults)} of {len(first.faults)} faults, without {left_out}:")
    for line in (*faults, *result.violations[:3]):
        print(f"  {line}")
    rates = [name for name in _CALM if name not in kept and getattr(draw(profile, seed), name) != _CALM[name]]
    print(f"  with {', '.join(rates) or 'no other fault'}")
    return 1


def _calmest(profile: Profile, simulated: Callable[[dict[str, Any]], Result]) -> dict[str, Any]:
    """Return the changes of a profile, in the direction of no faults, with which it still fails."""
    kept: dict[str, Any] = {}
    for name, value in _CALM.items():
        if getattr(profile, name) == value or (name == "caching" and profile.workers != "local"):
            continue
        if simulated({**kept, name: value}).violations:
            kept[name] = value
    return kept
