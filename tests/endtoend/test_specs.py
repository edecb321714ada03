"""The example specifications: Maestro loads each of them, and each gives the expected results."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import xml.etree.ElementTree
from collections import Counter

import pytest
from support import ROOT

SPECS = ROOT / "specs"


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_example_can_be_loaded(path, tmp_path):
    code = (
        "import sys\n"
        "import maestrowf.interfaces  # finds the plugin, as in `maestro`\n"
        "from maestrowf.specification import YAMLSpecification\n"
        "specification = YAMLSpecification.load_specification(sys.argv[1])\n"
        "print(specification.name, len(specification.get_study_steps()), specification.ensemble is not None)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # `python -c` imports from the current directory first, and the tests use the installed package
    )
    assert answer.stdout == f"{path.stem} 2 True\n", answer.stderr


def test_hello_greets_with_all_parameters(run):
    study = run(SPECS / "hello.yaml", foreground=True)

    assert study.outputs("greet/*/*.out") == ["hello, world!\n", "hola, mundo!\n"]
    assert study.outputs("close/*.out") == ["All greetings are out.\n"]


def test_hello_samples_greets_each_name_twice(run):
    study = run(SPECS / "hello_samples.yaml", foreground=True)

    expected = {f"{greeting}, name-{n}!" for greeting in ("hello", "hola") for n in range(1, 11)}
    assert set(study.outputs("count/greetings.txt")[0].splitlines()) == expected
    assert study.outputs("count/*.out") == ["20\n"]


def test_monte_carlo_pi_is_more_precise_with_more_points(run):
    """Given 40 seeds and three numbers of points, when all samples have run, then table and plot contain them."""
    study = run(SPECS / "monte_carlo_pi.yaml", foreground=True)

    with (study.path / "plot" / "pi.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["points"], row["samples"]) for row in rows] == [("100", "40"), ("1000", "40"), ("10000", "40")]
    deviations = [float(row["standard_deviation"]) for row in rows]
    assert deviations == sorted(deviations, reverse=True)
    assert abs(float(rows[-1]["mean"]) - math.pi) < 0.02

    picture = xml.etree.ElementTree.parse(study.path / "plot" / "pi.svg").getroot()
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 120


def test_active_learning_finds_the_minimum(run):
    """Given five points, when a model chooses the others, then one study finds the minimum at (0.72, 0.31) and ends."""
    study = run(SPECS / "active_learning.yaml", foreground=True)

    with (study.path / "learn" / "best.csv").open() as file:
        rows = [[float(value) for value in row] for row in csv.reader(file)]
    count, x, y, result = rows[-1]
    assert math.dist((x, y), (0.72, 0.31)) < 0.03
    assert result < rows[0][3] / 50
    assert len(rows) >= 3
    assert count == len(list(study.path.glob("sim/*/*/result.txt"))) <= 60
    assert set(study.states().values()) == {"FINISHED"}


def test_names_counts_the_repeats(run):
    """Given 200 generated names, when the samples have run, then the repeats agree with the sample table."""
    study = run(SPECS / "names.yaml", foreground=True)

    with (study.path / "merlin_info" / "names.csv").open(newline="") as file:
        names = Counter(" ".join(row) for row in csv.reader(file))
    repeated = {name: number for name, number in names.items() if number > 1}
    with (study.path / "repeats" / "repeats.csv").open(newline="") as file:
        assert {name: int(number) for name, number in csv.reader(file)} == repeated
    summary = study.outputs("repeats/*.out")[0].splitlines()
    assert summary[0] == f"200 names, {len(names)} different, {len(repeated)} of them more than once"
    assert summary[-1].startswith("There are about ")
    assert any("'" in name for name in names)  # the names include quotes
