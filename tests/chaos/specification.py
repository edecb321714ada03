"""The specification of a study that is broken at random: two sampled steps with two parameters, then a last step."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["POOLS", "code_of", "requests_of", "specification"]

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


def code_of(sample: int) -> int:
    """Return the last exit code of a sample."""
    return 3 if sample % 31 == 7 else 0


def requests_of(sample: int) -> int:
    """Return how often a sample requests another run."""
    return (sample % 19 == 3) + (sample % 17 == 4)


def specification(samples: int, pool: str) -> str:
    """Return a specification, as JSON, which is YAML as well.

    Args:
        samples: Number of samples of a step record; they take 0.02 to 0.2 s.
        pool: The worker groups, a key of `POOLS`.
    """
    step = {
        "cmd": _SCRIPT.format(mode="cmd") + "# $(P)\n",
        "restart": _SCRIPT.format(mode="restart") + "# $(P)\n",
        "retry_delay": 0.2,
    }
    durations = f"BEGIN {{srand(7); for (i = 0; i < {samples}; i++) printf \"%.3f\\n\", 0.02 + 0.18 * rand()}}"
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
