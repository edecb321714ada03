"""The exit codes of samples: a mixture of all of them, retries before new samples, and the end of all workers."""

from __future__ import annotations

import collections
import random
from pathlib import Path

import numpy as np
import pytest
from support import wait_for

from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.states import ExitCode, Outcome
from maestro_celery_plugin.study.manifest import Manifest

MAX_RETRIES = 2
# `sim` runs to its end; `hard` fails at its first hard failure; `soft` waits for `sim`, and `never` for `hard`. After a hard
# failure, samples of the second half wait to be ended: otherwise all would have run before a slow conductor knows of it. For
# the same reason, every tenth new sample of `sim` takes up to a second while many retries are behind.
MIXTURE = """
    description: {{name: mixture, description: d}}
    batch: {{type: local, shell: /bin/sh}}
    study:
      - name: sim
        description: d
        run:
          max_retries: 2
          retry_delay: 0
          cmd: |
            read tried < tried || tried=0
            tried=$((tried + 1)); echo $tried > tried; echo "$(MERLIN_SAMPLE_ID) $tried" >> $(SPECROOT)/{name}.order
            [ $tried = 1 ] || echo >> $(SPECROOT)/{name}.again
            behind() {{ [ $(( $(wc -l < $(SPECROOT)/{name}.asked) - $(wc -l < $(SPECROOT)/{name}.again) )) -gt 200 ]; }}
            if [ $tried = 1 ] && [ $(( $(MERLIN_SAMPLE_ID) % 10 )) = 0 ]; then
                for i in 1 2 3 4 5; do ! behind || sleep 0.2; done
            fi
            set -- $(SIM); shift $((tried - 1))
            case $1.$tried in 100.[12]|104.[12]) echo >> $(SPECROOT)/{name}.asked;; esac
            exit $1
      - name: hard
        description: d
        run:
          cmd: |
            [ $(MERLIN_SAMPLE_ID) -lt {half} ] || ! [ -e $(SPECROOT)/{name}.failed ] || sleep 600
            echo $(MERLIN_SAMPLE_ID) >> $(SPECROOT)/{name}.hard
            case $(HARD) in 102|106) touch $(SPECROOT)/{name}.failed;; esac
            exit $(HARD)
          depends: [sim]
      - name: never
        description: d
        run: {{cmd: exit 0, depends: [hard]}}
      - name: soft
        description: d
        run: {{cmd: exit 0, depends: [sim]}}
    merlin:
      resources: {{workers: {{w: {{args: --concurrency 2, steps: [all]}}}}}}
      samples: {{file: {table}, column_labels: [SIM, HARD]}}
"""


class Mixture:
    """Random exit codes of samples, and what must become of them.

    Attributes:
        codes: The exit codes of the attempts of each sample.
        attempts: The number of attempts of each sample.
        outcomes: The outcome of each sample.
        hard: The exit code of each sample in the step `hard`.
    """

    def __init__(self, samples: int, stops: int) -> None:
        chance = random.Random(samples)
        again = (ExitCode.RESTART, ExitCode.RETRY)
        final = (0, 0, 0, 0, 0, 1, ExitCode.SOFT_FAIL, 103)
        self.codes = [[*chance.choices(again, k=chance.choice((0,) * 12 + (1, 2, 3))), chance.choice(final)] for _ in range(samples)]
        for sample in chance.sample(range(samples), stops):
            self.codes[sample] = [ExitCode.RETRY, ExitCode.STOP_WORKERS]
        self.attempts = [min(len(codes), MAX_RETRIES + 1) for codes in self.codes]
        self.outcomes = [self._outcome(codes) for codes in self.codes]
        self.hard = chance.choices((0, 1, ExitCode.SOFT_FAIL, ExitCode.HARD_FAIL, ExitCode.RAISE_ERROR), (20, 5, 5, 1, 1), k=samples)

    @staticmethod
    def _outcome(codes: list[int]) -> Outcome:
        if len(codes) > MAX_RETRIES + 1:  # it has requested one run too much
            return Outcome.FAILED
        return {0: Outcome.FINISHED, ExitCode.STOP_WORKERS: Outcome.STOPPED_STUDY}.get(codes[-1], Outcome.FAILED)

    def write(self, path: Path) -> Path:
        path.write_text("".join(f"{' '.join(map(str, map(int, c)))},{int(h)}\n" for c, h in zip(self.codes, self.hard, strict=True)))
        return path


def await_end(study) -> int:
    """Resume a study whenever it waits, until it has ended; return how often."""
    pauses = []

    def has_ended() -> bool:
        if (study.path / "merlin_info" / "session" / "workers_stopped").exists():
            pauses.append(study.command("maestro-celery", "resume", str(study.path)).returncode)
        return bool(study.states()) and not study.processes()

    wait_for(has_ended, "the end of the study", 500)
    assert not any(pauses), study.log()
    return len(pauses)


def order_of(path: Path) -> list[tuple[int, int]]:
    """Return the index and the number of the attempt of each start, in order."""
    return [(int(index), int(tried)) for index, tried in map(str.split, path.read_text().splitlines())]


def states_of(study, step: str, samples: int, max_retries: int) -> SampleStates:
    states = SampleStates(samples, max_retries)
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    number = Manifest.read(study.path / "merlin_info" / "records" / step / "manifest.json").number
    states.apply(entries[entries["record"] == number])
    return states


@pytest.mark.parametrize(("broker", "samples", "stops"), [("private", 10_000, 3), ("redis", 500, 1), ("rabbitmq", 500, 1)])
def test_every_sample_of_a_mixture_of_exit_codes_has_the_right_outcome(run, request, tmp_path, broker, samples, stops):
    """Given random exit codes, then attempts, outcomes and counts are exact, and retries go before new samples."""
    url = "private" if broker == "private" else request.getfixturevalue(f"{broker}_server").url
    mixture = Mixture(samples, stops)
    for kind in ("asked", "again"):
        (tmp_path / f"{broker}.{kind}").touch()
    spec = MIXTURE.format(name=broker, half=samples // 2, table=mixture.write(tmp_path / "codes.csv"))

    study = run(spec, "--broker", url, "-s", "1")
    assert 1 <= await_end(study) <= stops

    order = order_of(tmp_path / f"{broker}.order")
    assert [count for _, count in sorted(collections.Counter(index for index, _ in order).items())] == mixture.attempts
    assert len(order) == len(set(order))
    assert states_of(study, "sim", samples, MAX_RETRIES).outcome.tolist() == mixture.outcomes
    assert study.states() == {"sim": "FINISHED", "hard": "FAILED", "never": "FAILED", "soft": "FINISHED"}
    counts = {step["name"]: step["samples"] for step in study.status()["steps"]}
    failed = mixture.outcomes.count(Outcome.FAILED)
    nothing = {"running": 0, "pending": 0}
    assert counts["sim"] == {"total": samples, "finished": samples - failed, "failed": failed, **nothing}
    assert counts["soft"] == {"total": 1, "finished": 1, "failed": 0, **nothing}
    assert_hard(study, mixture, counts["hard"], tmp_path / f"{broker}.hard")
    if samples < 1000:
        return  # all new samples have started before the conductor knows the first retry
    # In the order of the queue, the first retries would come after the last new sample.
    last_new = max(at for at, (_, tried) in enumerate(order) if tried == 1)
    assert sum(tried > 1 for _, tried in order[:last_new]) > sum(tried > 1 for _, tried in order) // 4


def assert_hard(study, mixture: Mixture, counts: dict[str, int], order: Path) -> None:
    """Assert that the step `hard` has failed at a hard failure, with right outcomes of the samples that have run."""
    ran = [int(index) for index in order.read_text().split()]
    outcome = states_of(study, "hard", len(mixture.hard), 0).outcome
    ended = np.flatnonzero(outcome != Outcome.OPEN).tolist()
    hard = (ExitCode.HARD_FAIL, ExitCode.RAISE_ERROR)
    expected = [Outcome.HARD_FAILED if c in hard else Outcome.FAILED if c else Outcome.FINISHED for c in mixture.hard]
    assert [outcome[sample] for sample in ended] == [expected[sample] for sample in ended]
    assert len(ran) == len(set(ran))
    assert set(ended) <= set(ran)
    assert any(outcome == Outcome.HARD_FAILED)
    assert len(ran) < len(mixture.hard), "its queued samples have run"
    failed = sum(outcome[sample] != Outcome.FINISHED for sample in ended)
    assert counts["failed"] == failed
    assert counts["finished"] == len(ended) - failed
    assert counts["pending"] == len(mixture.hard) - len(ended)


def test_a_hard_failure_stops_the_samples_of_its_step_record_only(run):
    """Given a hard failure, then other step records of the step, and other steps of the task queue, run to their end."""
    study = run(
        """
        description: {name: hard, description: d}
        study:
          - name: sim
            description: d
            run:
              # After a hard failure, a sample that has started runs until it is ended.
              cmd: |
                [ $(CODE) = 0 ] || ! [ -e $(SPECROOT)/$(CODE) ] || sleep 600
                [ $(MERLIN_SAMPLE_ID) -lt 30 ] || { touch $(SPECROOT)/$(CODE); exit $(CODE); }
          - name: after
            description: d
            run: {cmd: echo, depends: [sim]}
          - name: other
            description: d
            run: {cmd: "sleep 0.02 # $(MERLIN_SAMPLE_ID)"}
        merlin:
          resources: {workers: {w: {args: --concurrency 2, steps: [all]}}}
          samples: {generate: {cmd: seq 60 > $(MERLIN_INFO)/a.csv}, file: $(MERLIN_INFO)/a.csv, column_labels: [A]}
        global.parameters:
          CODE: {values: [0, 102, 106], label: CODE.%%}
        """,
        "-s", "1",
    ).await_end()  # fmt: skip

    good, bad = {"FINISHED"}, {"FAILED"}
    states = study.states()
    assert {states[name] for name in ("sim_CODE.0", "after_CODE.0", "other")} == good
    assert {states[f"{step}_CODE.{code}"] for step in ("sim", "after") for code in (102, 106)} == bad
    counts = {step["name"]: step["samples"] for step in study.status()["steps"]}
    assert counts["other"]["finished"] == counts["sim_CODE.0"]["finished"] == 60
    assert counts["sim_CODE.102"]["pending"]
    assert counts["sim_CODE.106"]["pending"]


def test_a_restart_keeps_the_shell_and_appends_to_the_output(run):
    study = run(
        """
        description: {name: shell, description: d}
        study:
          - name: sim
            description: d
            run:
              shell: /usr/bin/env python3
              retry_delay: 0
              cmd: |
                import sys
                print("cmd", "$(A)".upper(), flush=True)
                print("problem", file=sys.stderr)
                sys.exit($(MERLIN_RESTART))
              restart: |
                import os, sys
                print("restart", "$(A)".upper(), flush=True)
                sys.exit(0 if os.path.exists("again") else open("again", "w").close() or $(MERLIN_RESTART))
        merlin:
          samples: {generate: {cmd: "echo a > $(MERLIN_INFO)/a.csv"}, file: $(MERLIN_INFO)/a.csv, column_labels: [A]}
        """,
        foreground=True,
    )
    assert study.states() == {"sim": "FINISHED"}
    lines = [line for line in study.outputs("sim/sim.out")[0].splitlines() if not line.startswith("===")]
    assert lines == ["cmd A", "restart A", "restart A"]
    assert "problem" in study.outputs("sim/sim.err")[0]


# The first sample that runs waits for `go`. The third one stops the workers, and those that a worker still takes then wait
# for `go` as well. The 30th one stops the workers again, and those that follow wait until the worker leaves, or for `end`.
STOP = """
    description: {name: stop, description: d}
    study:
      - name: sim
        description: d
        run:
          cmd: |
            echo $(A) >> $(SPECROOT)/runs
            n=$(wc -l < $(SPECROOT)/runs)
            [ $n -ge 3 ] && mkdir $(SPECROOT)/first && exit 105
            [ $n -ge 30 ] && mkdir $(SPECROOT)/second && exit 105
            if mkdir $(SPECROOT)/waits || [ -e $(SPECROOT)/first ]; then until [ -e $(SPECROOT)/go ]; do sleep 0.1; done; echo done; fi
            leaves() { grep -q stopping $MAESTRO_CELERY_SESSION/workers/*.json; }
            [ ! -e $(SPECROOT)/second ] || until leaves || [ -e $(SPECROOT)/end ]; do sleep 0.1; done
            sleep 0.1
      - name: after
        description: d
        run: {cmd: echo after, depends: [sim]}
    merlin:
      resources: {workers: {w: {args: --concurrency 2, steps: [all]}}}
      samples: {generate: {cmd: seq 60 > $(MERLIN_INFO)/a.csv}, file: $(MERLIN_INFO)/a.csv, column_labels: [A]}
"""
WAITS = "has requested that all workers stop (exit code 105)."


def await_pause(study, file: Path) -> int:
    """Wait until a study waits and its workers have left; return how many samples have run."""
    wait_for((study.path / "merlin_info" / "session" / "workers_stopped").exists, "the request")
    wait_for(lambda: not study.processes("maestro_celery_plugin.worker"), f"the end of the workers: {study.processes()}")
    return len(file.read_text().splitlines())


def test_stop_workers_lets_the_study_wait_for_a_user(run, tmp_path):
    """Given exit code 105, then running samples end by themselves, and the study waits for workers or a resume."""
    study, runs = run(STOP, "-s", "1"), tmp_path / "runs"
    wait_for((study.path / "merlin_info" / "session" / "workers_stopped").exists, "the request")
    wait_for(lambda: {worker["state"] for worker in study.status()["workers"]} == {"stopping"}, "the leaving worker")
    wait_for(lambda: study.states()["sim"] == "RUNNING", "the state in Maestro")
    (tmp_path / "go").touch()
    ran = await_pause(study, runs)

    assert "done\n" in study.outputs("sim/**/sim.out"), "a running sample was ended"
    assert ran in (3, 4)
    wait_for(lambda: study.status()["steps"][0]["state"] == "PENDING", "the waiting step")
    status = study.status()
    assert (status["state"], status["steps"][0]["samples"]["finished"]) == ("RUNNING", ran)
    assert status["workers_stopped"]["reason"].endswith(WAITS)
    resume, workers = (f"`maestro-celery {command} {study.path}`" for command in ("resume", "workers"))
    explained = study.command("maestro-celery", "explain", str(study.path)).stdout
    assert f"{WAITS} The study waits: {resume} starts its workers again, {workers} starts" in explained
    assert "Worker group 'w': its workers are stopped." in explained
    assert resume.strip("`") in study.command("maestro-celery", "status", str(study.path)).stdout
    assert "".join(study.outputs("logs/*.log")).count("The study waits") == 1

    # A worker of the user goes on, until a second sample stops all workers.
    heartbeats = study.path / "merlin_info" / "session" / "workers"
    wait_for(lambda: not list(heartbeats.glob("*.json")), "the removal of the heartbeat, for which samples look")
    answer = study.command("maestro-celery", "workers", str(study.path))
    assert answer.returncode == 0, answer.stderr
    assert await_pause(study, runs) in (30, 31, 32)
    (tmp_path / "end").touch()

    # A new conductor ends the pause.
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    study.await_end()

    assert study.states() == {"sim": "FINISHED", "after": "FINISHED"}
    assert sorted(map(int, runs.read_text().split())) == list(range(1, 61)), "a sample has run twice"


def test_a_study_without_further_work_ends_after_stop_workers(run):
    """Given exit code 105 of the last sample, then the study ends."""
    spec = STOP.replace("seq 60", "seq 3").replace("mkdir $(SPECROOT)/waits || [ -e $(SPECROOT)/first ]", "false")
    spec = spec.replace("exit 105", "sleep 1 && exit 105")
    start, end = spec.index("      - name: after"), spec.index("    merlin:")
    study = run(spec[:start] + spec[end:], foreground=True)

    assert study.states() == {"sim": "FINISHED"}
    assert "study waits" not in study.output
