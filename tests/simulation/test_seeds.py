"""Seeds of the simulation: 500 worlds keep the promises; two runs of one seed are equal; planted faults are found.

Each test runs in a process of its own, because the simulation replaces functions of the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
# A planted fault, and the seed of the profile `storm` from which on one of a few is known to find it; README.md has the
# list. A change of the product makes other worlds of the seeds, so each fault has more than one chance.
PLANTED = [
    ("no claims", 0),
    ("no recall", 0),
    ("no flush", 0),
    ("no fence", 110),
    ("no lost", 0),
    ("requests are losses", 0),
    ("short silence", 95),
    ("no restart", 0),
    ("no poison limit", 0),
    ("no suspects", 0),
    ("no resend", 0),
    ("sends leased", 0),
    ("no heartbeat limit", 325),
]
CHANCES = 40


def simulate(*options: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run simulations in another process."""
    command = [sys.executable, "-m", "simulation", *options]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("profile", "seed", "count"),
    [("calm", 0, 100), ("nfs", 0, 150), *(("storm", seed, 50) for seed in range(0, 250, 50))],
)
def test_each_seed_keeps_the_promises(profile, seed, count):
    """Given a world with the faults of a seed, then each sample has one outcome, and nothing runs without a reason."""
    result = simulate("--profile", profile, "--seed", str(seed), "--count", str(count), "--keep-going")
    print(result.stdout)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("profile", "seed"), [("calm", 1), ("nfs", 4), ("storm", 8)])
def test_two_runs_of_one_seed_are_equal_to_the_letter(profile, seed):
    """Given another order of sets in Python, then the same seed has the same trace."""
    options = ("--profile", profile, "--seed", str(seed), "--trace")
    first, second = (simulate(*options, hash_seed=hash_seed) for hash_seed in ("1", "2"))

    def without_times(output: str) -> list[str]:
        return [line for line in output.splitlines() if " simulated hours in " not in line]

    assert without_times(first.stdout) == without_times(second.stdout)
    assert "trace " in first.stdout


@pytest.mark.parametrize(("name", "seed"), PLANTED)
def test_a_planted_fault_is_found(name, seed):
    """Given a product without one of its rules, then a seed finds it."""
    options = ("--profile", "storm", "--seed", str(seed), "--count", str(CHANCES))
    result = simulate(*options, "--planted", name)  # ends at the first violation

    assert result.returncode == 1, result.stdout + result.stderr
    assert " of storm: " in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_ended_prints_the_sum(number):
    """Given a search without an end, when a user ends it, then it prints what has happened so far."""
    command = [sys.executable, "-m", "simulation", "--profile", "calm", "--count", "0"]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Seeds from 0 on")

        process.send_signal(number)
        output = process.stdout.read()

    assert process.returncode == 0
    assert "interrupted" in output
    assert "0 with a violation" in output
