"""The specification of a study that is broken at random: two sampled steps with two parameters, then a last step."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

__all__ = ["NODES_OF_GROUP", "POOLS", "SAMPLES", "SHAPES", "code_of", "requests_of", "specification"]

# Each attempt appends two lines to the file `runs` of its sample: at its start, and before its end.
_SCRIPT = """\
echo "start {mode} $$ $EPOCHREALTIME" >> runs
sleep $(X)
{more}done=" $(awk '/^end/ {{print $5}}' runs | tr '\\n' ' ')"
code=0
test $(( $(MERLIN_SAMPLE_ID) % 31 )) = 7 && code=3
test $(( $(MERLIN_SAMPLE_ID) % 19 )) = 3 && [[ $done != *" 100 "* ]] && code=100
test $(( $(MERLIN_SAMPLE_ID) % 17 )) = 4 && [[ $done != *" 104 "* ]] && code=104
echo "end {mode} $$ $EPOCHREALTIME $code" >> runs
exit $code
"""
# A study that is started from a sample or a step; the first study has the round 1.
_START = (
    "maestro run $(MERLIN_SPEC_ORIGINAL_TEMPLATE) --vars ROUND={round} -o $(OUTPUT_PATH)_{round}"
    ' || echo "round {round}: code $?" >> problems\n'
)
_START_IN_SAMPLE = "if [ $(ROUND)$(P)$(MERLIN_SAMPLE_ID) = 115 ]; then\n" + _START.format(round=2) + "fi\n"
_START_IN_STEP = "if [ $(ROUND) = 1 ]; then\n" + _START.format(round=3) + "fi\n"
# The last step notes how many samples it sees.
_LAST = "echo run >> runs\nfind $(two.workspace) -name runs | wc -l >> seen\n"
NODES_OF_GROUP = 2


@dataclasses.dataclass(frozen=True)
class Pool:
    """Worker groups, each on one node, and the number of their slots."""

    groups: dict[str, dict[str, Any]]
    slots: int


POOLS = {
    "threads": Pool({"w": {"args": "--concurrency 3", "idle_limit": 20}}, 3),
    "prefork": Pool({"w": {"args": "--pool prefork --concurrency 3", "idle_limit": 20}}, 3),
    "groups": Pool({name: {"args": "--concurrency 2", "idle_limit": 20, "steps": ["all"]} for name in ("v", "w")}, 4),
}


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of each step record, which take between two durations."""

    count: int
    shortest_s: float
    longest_s: float

    def rows(self, count: int, seed: int) -> str:
        """Return a command that prints `count` durations."""
        row = f'printf "%.3f\\n", {self.shortest_s} + {self.longest_s - self.shortest_s} * rand()'
        return f"awk 'BEGIN {{srand({seed}); for (i = 0; i < {count}; i++) {row}}}'"


# A slot runs many short samples of its range, and sends the rest after each of the long ones.
SAMPLES = {"short": Samples(75, 0.02, 0.2), "long": Samples(12, 1.0, 3.0)}
# How many studies each kind of study consists of: samples are added to the second one, the last one starts two studies.
SHAPES = {"plain": 1, "growing": 1, "nested": 3}


def code_of(sample: int) -> int:
    """Return the last exit code of a sample."""
    return 3 if sample % 31 == 7 else 0


def requests_of(sample: int) -> int:
    """Return how often a sample requests another run."""
    return (sample % 19 == 3) + (sample % 17 == 4)


def specification(samples: str, pool: str, shape: str, *, slurm: bool) -> str:
    """Return a specification, as JSON, which is YAML as well.

    Args:
        samples: The samples, a key of `SAMPLES`.
        pool: The worker groups, a key of `POOLS`.
        shape: The kind of study, a key of `SHAPES`.
        slurm: Whether the workers run in allocations of a Slurm cluster, which other jobs may preempt.
    """
    in_sample, in_step = (_START_IN_SAMPLE, _START_IN_STEP) if shape == "nested" else ("", "")
    first, second = _step(in_sample), _step("")
    batch = {"type": "slurm", "nodes": NODES_OF_GROUP, "procs": NODES_OF_GROUP, "queue": "low", "walltime": "00:05:00"}
    return json.dumps(
        {
            "description": {"name": "chaos", "description": "a study that is broken at random"},
            "env": {"variables": {"ROUND": 1}},
            **({"batch": batch} if slurm else {}),
            "study": [
                {"name": "one", "description": "d", "run": first},
                {"name": "two", "description": "d", "run": {**second, "depends": ["one"]}},
                {"name": "last", "description": "d", "run": {"cmd": _LAST + in_step, "depends": ["two_*"]}},
            ],
            "global.parameters": {"P": {"values": [1, 2], "label": "P.%%"}},
            "merlin": {
                "resources": {"workers": POOLS[pool].groups, "overlap": True},
                "samples": {
                    "generate": {"cmd": SAMPLES[samples].rows(SAMPLES[samples].count, 7) + " > $(MERLIN_INFO)/x.csv"},
                    "file": "$(MERLIN_INFO)/x.csv",
                    "column_labels": ["X"],
                },
            },
        }
    )


def _step(more: str) -> dict[str, Any]:
    scripts = {key: _SCRIPT.format(mode=key, more=more) + "# $(P)\n" for key in ("cmd", "restart")}
    return {**scripts, "retry_delay": 0.2}
