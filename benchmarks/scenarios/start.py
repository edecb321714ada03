"""Start and end: from the command to the first sample, and from the last sample to the prompt, beside plain Maestro."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

from benchmarks.errors import BenchmarkError, ToolFailedError
from benchmarks.measure import scratch
from benchmarks.processes import Processes
from benchmarks.rows import Goal, Row
from benchmarks.settings import BenchSettings, say
from benchmarks.tools.plugin import command
from benchmarks.workloads import PlainStudy, Study, write_table

__all__ = ["start_rows"]

_SAMPLES = 4
_RUNS_PER_ROUND = 3
_CMD = "date +%s.%N > time"


@dataclasses.dataclass(frozen=True)
class _Start:
    """One short study.

    Attributes:
        first_s: Seconds from the command to the first sample.
        prompt_s: Seconds from the last sample to the end of the command.
    """

    first_s: float
    prompt_s: float


def start_rows(settings: BenchSettings) -> list[Row]:
    """Run short studies with plain Maestro and with the plugin in turn; return a row for each end of each."""
    say("start and end of a short study")
    plain, ensemble = [], []
    try:
        for _ in range(settings.rounds * _RUNS_PER_ROUND):
            plain.append(_run(settings, is_plain=True))
            ensemble.append(_run(settings, is_plain=False))
    except BenchmarkError as error:
        return [Row(case="start and end of a short study", note=str(error))]
    first, plain_first = _median(ensemble, "first_s"), _median(plain, "first_s")
    prompt, plain_prompt = _median(ensemble, "prompt_s"), _median(plain, "prompt_s")
    return [
        Row(case="first sample of a study: plain Maestro", time_s=plain_first),
        Row(
            case="first sample of a study: this plugin",
            time_s=first,
            goals=(Goal.at_most("first sample / plain Maestro's", first / plain_first, 3.0),),
        ),
        Row(case="last sample to prompt: plain Maestro", time_s=plain_prompt),
        Row(
            case="last sample to prompt: this plugin",
            time_s=prompt,
            goals=(Goal.at_most("after plain Maestro's prompt", prompt - plain_prompt, 0.3, " s"),),
        ),
    ]


def _median(starts: list[_Start], name: str) -> float:
    return statistics.median(getattr(start, name) for start in starts)


def _run(settings: BenchSettings, *, is_plain: bool) -> _Start:
    with scratch() as directory, Processes(directory) as processes:
        specification = directory / "study.yaml"
        if is_plain:
            PlainStudy(cmd=_CMD).write(specification)
        else:
            table = write_table(directory / "samples.npy", _SAMPLES)
            cmd = f"{_CMD}  # $(MERLIN_SAMPLE_ID)"
            Study(table=table, worker_args=f"--concurrency {settings.slots}", cmd=cmd).write(specification)
        begin = time.time()
        processes.run([command("maestro"), "run", "-fg", "-y", "-s", "1", "-o", directory / "results", specification])
        end = time.time()
        times = sorted(float(path.read_text()) for path in Path(directory, "results").rglob("time"))
    if len(times) != (1 if is_plain else _SAMPLES):
        raise ToolFailedError(f"{len(times)} samples have run")
    return _Start(times[0] - begin, end - times[-1])
