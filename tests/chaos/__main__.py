"""Break studies at random: ``python -m chaos --seed 7``, or many seeds with ``--count``; see CONTRIBUTING.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from servers import free_port, rabbitmq_on, redis_on
from slurm_cluster import COMMANDS, SlurmCluster
from slurm_studies import Launcher

from chaos.case import BROKERS, Case
from chaos.driver import break_study
from chaos.result import Result, sum_of
from chaos.specification import POOLS, SHAPES

# With `--place both`, one of so many seeds runs on the cluster.
_ONE_ON_SLURM_OF = 5


class Servers:
    """The brokers by URL and the cluster, each started when the first case needs it.

    Args:
        stack: Ends them.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._urls: dict[str, str | None] = {"private": None}
        self._slurm: SlurmCluster | None = None

    def url(self, broker: str) -> str | None:
        """Return the URL of a broker; None for the private one."""
        if broker == "rabbitmq" and broker not in self._urls:
            self._urls[broker] = self._stack.enter_context(rabbitmq_on()).url
        if broker == "redis" and broker not in self._urls:
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-redis-")))
            self._urls[broker] = self._stack.enter_context(redis_on(free_port(), directory))
        return self._urls[broker]

    def slurm(self) -> SlurmCluster:
        """Return the cluster."""
        if self._slurm is None:
            self._slurm = self._stack.enter_context(SlurmCluster())
        return self._slurm


def main() -> int:
    """Run the seeds, print the sum, and return 1 if anything was wrong."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
    results: list[Result] = []
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        servers, seed = Servers(stack), options.seed
        while not options.count or seed < options.seed + options.count:
            result = _run(_case(seed, options), servers, keep=options.keep)
            results.append(result)
            if options.results:
                with options.results.open("a") as file:
                    file.write(result.to_json() + "\n")
            seed += 1
    if not options.results:
        print("\n".join(sum_of(results)), flush=True)
    return int(any(result.wrong for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="number of seeds; 0 for all until stopped")
    parser.add_argument("--broker", choices=sorted(set(BROKERS)), help="the broker of all seeds")
    parser.add_argument("--pool", choices=sorted(POOLS), help="the worker groups of all seeds")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="the kind of study of all seeds")
    parser.add_argument("--place", choices=("local", "slurm", "both"), default="local", help="where workers run")
    parser.add_argument("--keep", action="store_true", help="keep the directories of all studies")
    parser.add_argument("--results", type=Path, help="append a line of JSON per seed to this file, and print no sum")
    return parser.parse_args()


def _case(seed: int, options: argparse.Namespace) -> Case:
    slurm = options.place == "slurm" or (options.place == "both" and seed % _ONE_ON_SLURM_OF == 0 and _can_run_slurm())
    return Case.of(seed, broker=options.broker, pool=options.pool, shape=options.shape, slurm=slurm)


def _can_run_slurm() -> bool:
    return os.geteuid() == 0 and all(shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin") for command in COMMANDS)


def _run(case: Case, servers: Servers, *, keep: bool) -> Result:
    """Run a case, and print its result; keep the directory of each study, or of one with which something is wrong."""
    url, slurm = servers.url(case.broker), servers.slurm() if case.slurm else None
    directory = Path(tempfile.mkdtemp(prefix=f"chaos{case.seed}-"))
    launcher = Launcher(directory, slurm)
    try:
        result = break_study(launcher, case, broker_url=url, slurm=slurm)
    except AssertionError:  # the study was not launched; the next seed runs all the same
        result = Result(case, wrong=[traceback.format_exc()])
    except KeyboardInterrupt:
        print(f"seed {case.seed}: interrupted; {case.name}", flush=True)
        launcher.close()
        shutil.rmtree(directory, ignore_errors=True)
        raise
    launcher.close()
    print(result.line(), flush=True)
    for sentence in result.wrong[:10]:
        print(f"    {sentence}", flush=True)
    if result.wrong or keep:
        print(f"    The study is kept in {directory}; faults: {', '.join(result.done)}", flush=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
