"""A specification without an ensemble: the time in which Maestro loads it, with and without the plugin."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.rows import Goal, Row
from benchmarks.settings import BenchSettings, say
from benchmarks.venvs import SideVenv
from benchmarks.workloads import PlainStudy

__all__ = ["plain_specification_rows"]

_VALUES = 10_000
_RUNS_PER_ROUND = 5
_MAESTRO = SideVenv("maestro", ("maestrowf",))
# `maestro run` loads the specification by this name, which the plugin replaces.
_LOAD = (
    "import sys, time, maestrowf.maestro as maestro\n"
    "begin = time.perf_counter()\n"
    "specification = maestro.YAMLSpecification.load_specification(sys.argv[1])\n"
    "specification.get_study_environment(), specification.get_study_steps(), specification.get_parameters()\n"
    "print(time.perf_counter() - begin)\n"
)


def plain_specification_rows(settings: BenchSettings) -> list[Row]:
    """Load the specification in both environments in turn; return a row for each."""
    case = f"load a specification without an ensemble, {_VALUES:,} values"
    say(case)
    try:
        maestro = _MAESTRO.ensure() / "python"
        with scratch() as directory:
            PlainStudy(cmd="echo $(P)", values=_VALUES).write(directory / "study.yaml")
            rounds = range(settings.rounds * _RUNS_PER_ROUND)
            times = [(_seconds(maestro, directory), _seconds(Path(sys.executable), directory)) for _ in rounds]
    except BenchmarkError as error:
        return [Row(case=case, note=str(error))]
    without, installed = (statistics.median(column) for column in zip(*times, strict=True))
    goal = Goal.at_most("with / without", installed / without, 1.1)
    return [
        Row(case=f"{case}: Maestro without this plugin", time_s=without),
        Row(case=f"{case}: with this plugin installed", time_s=installed, goals=(goal,)),
    ]


def _seconds(python: Path, directory: Path) -> float:
    command = [str(python), "-c", _LOAD, str(directory / "study.yaml")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolFailedError(f"the specification cannot be loaded: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)
