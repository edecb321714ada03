"""The specification of a study that is broken at random: two sampled steps with two parameters, then a last step."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

__all__ = ["POOLS", "SAMPLES", "code_of", "requests_of", "specification"]

# Each attempt appends two lines to the file `runs` of its sample: at its start, and before its end.
_SCRIPT = """\
echo "start {mode} $$ $EPOCHREALTIME" >> runs
sleep $(X)
done=" $(awk '/^end/ {{print $5}}' runs | tr '\\n' ' ')"
code=0
test $(( $(MERLIN_SAMPLE_ID) % 31 )) = 7 && code=3
test $(( $(MERLIN_SAMPLE_ID) % 19 )) = 3 && [[ $done != *" 100 "* ]] && code=100
test $(( $(MERLIN_SAMPLE_ID) % 17 )) = 4 && [[ $done != *" 104 "* ]] && code=104
echo "end {mode} $$ $EPOCHREALTIME $code" >> runs
exit $code
"""
POOLS: dict[str, dict[str, Any]] = {
    "threads": {"w": {"args": "--concurrency 3", "idle_limit": 20}},
    "prefork": {"w": {"args": "--pool prefork --concurrency 3", "idle_limit": 20}},
    "groups": {name: {"args": "--concurrency 2", "idle_limit": 20, "steps": ["all"]} for name in ("v", "w")},
}


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of each step record, which take between two durations."""

    count: int
    shortest_s: float
    longest_s: float


# A slot runs many short samples of its range, and sends the rest after each of the long ones.
SAMPLES = {"short": Samples(75, 0.02, 0.2), "long": Samples(12, 1.0, 3.0)}


def code_of(sample: int) -> int:
    """Return the last exit code of a sample."""
    return 3 if sample % 31 == 7 else 0


def requests_of(sample: int) -> int:
    """Return how often a sample requests another run."""
    return (sample % 19 == 3) + (sample % 17 == 4)


def specification(kind: str, pool: str) -> str:
    """Return a specification, as JSON, which is YAML as well.

    Args:
        kind: The samples, a key of `SAMPLES`.
        pool: The worker groups, a key of `POOLS`.
    """
    step = {
        "cmd": _SCRIPT.format(mode="cmd") + "# $(P)\n",
        "restart": _SCRIPT.format(mode="restart") + "# $(P)\n",
        "retry_delay": 0.2,
    }
    one = SAMPLES[kind]
    row = f'printf "%.3f\\n", {one.shortest_s} + {one.longest_s - one.shortest_s} * rand()'
    durations = f"BEGIN {{srand(7); for (i = 0; i < {one.count}; i++) {row}}}"
    return json.dumps(
        {
            "description": {"name": "chaos", "description": "a study that is broken at random"},
            "study": [
                {"name": "one", "description": "d", "run": step},
                {"name": "two", "description": "d", "run": {**step, "depends": ["one"]}},
                {"name": "last", "description": "d", "run": {"cmd": "echo run >> runs", "depends": ["two_*"]}},
            ],
            "global.parameters": {"P": {"values": [1, 2], "label": "P.%%"}},
            "merlin": {
                "resources": {"workers": POOLS[pool], "overlap": True},
                "samples": {
                    "generate": {"cmd": f"awk '{durations}' > $(MERLIN_INFO)/x.csv"},
                    "file": "$(MERLIN_INFO)/x.csv",
                    "column_labels": ["X"],
                },
            },
        }
    )
