"""Lists of faults: Hypothesis looks for a list that breaks a promise, and shrinks it; the shrinking of a seed; old bugs.

Each test runs in a process of its own, because the simulation replaces functions of the standard library.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.misfortune import Fault
from simulation.shrink import fewest

TESTS = Path(__file__).parent.parent
README = Path(__file__).with_name("README.md")
# The number of lists that Hypothesis tries: MAESTRO_CELERY_FAULT_LISTS=2000 for a long search.
EXAMPLES = os.environ.get("MAESTRO_CELERY_FAULT_LISTS", "10")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the simulation in another process."""
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["local", "remote", "allocation"])
def test_no_list_of_faults_breaks_a_promise(place):
    """Given a study without other faults, then no list of faults that Hypothesis finds loses a sample or runs one twice."""
    result = run("simulation.fault_search", "--examples", EXAMPLES, "--place", place)
    print(result.stdout)

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_search_finds_and_shrinks_a_planted_fault():
    """Given a product that does not send lost messages again, then Hypothesis shows one fault with which a step never ends."""
    result = run("simulation.fault_search", "--examples", "40", "--place", "local", "--planted", "no resend")

    assert result.returncode == 1, result.stdout + result.stderr
    assert "fails with 1 fault:" in result.stdout
    assert ": wipe (" in result.stdout


def test_the_faults_of_a_seed_shrink_to_those_that_matter():
    """Given a seed that fails because of a planted fault, then the faults that do not matter are left out."""
    result = run("simulation", "--seed", "4", "--planted", "no restart", "--shrink")

    assert result.returncode == 1, result.stdout + result.stderr
    assert "seed 4 of storm fails with 0 of " in result.stdout
    assert "with request_share" in result.stdout


def test_a_fault_that_matters_is_not_left_out():
    """Given a list that fails with two of its faults, then these two are found."""
    faults = [Fault(float(at), "pause", at) for at in range(12)]
    needed = {faults[3], faults[8]}

    assert set(fewest(faults, needed.issubset)) == needed


def test_each_fault_of_the_product_that_a_seed_has_found_has_a_test():
    """Given the table of the README, then each test that it names exists."""
    rows = re.findall(r"^\| (?:`\w+` [\d, ]+|\(a check\)) \| .* \| `(test_\w+)` \|$", README.read_text(), re.MULTILINE)
    paths = [path for kind in ("unit", "functional") for path in (TESTS / kind).glob("test_*.py")]
    there = "".join(path.read_text() for path in paths)

    assert len(rows) >= 10
    assert [name for name in rows if f"def {name}(" not in there] == []
