"""The example specifications: Maestro loads each of them, and each gives the expected results."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import xml.etree.ElementTree
from collections import Counter

import pytest
from support import BIN, ROOT

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
    name, steps, is_ensemble = answer.stdout.split()
    assert (name, is_ensemble) == (path.stem, "True"), answer.stderr
    assert int(steps) in (2, 3)


def test_multi_machine_runs_on_one_machine(run):
    """Given both hosts with the name of this machine, then the conductor starts the workers of both groups."""
    here = socket.gethostname()
    study = run(SPECS / "multi_machine.yaml", "--vars", f"HOST1={here}", f"HOST2={here}", foreground=True)

    assert study.code == 0, study.output
    assert sorted(study.outputs("post/*/report.txt"), key=lambda text: int(text.split()[0])) == [
        f"{x} squared is {x * x}, simulated on {here} and processed on {here}\n" for x in range(1, 13)
    ]


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


def test_hpc_demo_counts_each_name(run):
    """Given 20 processes that write one file, three at a time, then none overwrites what another one wrote."""
    study = run(SPECS / "hpc_demo.yaml", "--vars", "CORES=3", "N_NAMES=400", foreground=True)

    drawn = Counter((study.path / "merlin_info" / "names.csv").read_text().split())
    rows = [line.split() for line in study.outputs("count/counts.txt")[0].splitlines()]
    assert {name: int(number) for number, name in rows} == drawn
    assert [int(number) for number, _ in rows] == sorted(drawn.values(), reverse=True)
    assert sum(drawn.values()) == 400


def test_one_variable_sets_the_sizes_of_hpc_demo(tmp_path):
    """Given a cluster, when only CORES is set, then the allocation and the slots of its workers have this size."""
    text = (SPECS / "hpc_demo.yaml").read_text()
    (tmp_path / "hpc_demo.yaml").write_text(text.replace("type: local ", "type: slurm "))
    command = [str(BIN / "maestro-celery"), "allocation", "hpc_demo.yaml", "--vars", "CORES=36"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("#SBATCH --ntasks=36\n") == 2
    assert "#SBATCH --nodes=1\n" in answer.stdout


def test_iterative_demo_ends_by_itself_when_no_new_name_comes(run):
    """Given 48 names, then each iteration knows those of the one before, and the last one estimates their number."""
    study = run(SPECS / "iterative_demo.yaml", "-s", "1")
    study.await_session()

    iterations = [study, *study.iterations()]
    assert all(set(one.states().values()) == {"FINISHED"} for one in iterations)
    *_, last = growths = [json.loads(one.outputs("count/state.json")[0])["growth"] for one in iterations]
    assert growths == [last[: number + 2] for number in range(len(iterations))]
    assert [draws for draws, _ in last] == [60 * number for number in range(len(last))]
    grows = [later > before for (_, before), (_, later) in itertools.pairwise(last)]
    assert grows == [True] * (len(iterations) - 1) + [False]
    (estimate,) = iterations[-1].outputs("iterate/estimate.txt")
    assert float(estimate) == pytest.approx(48, abs=2)
    assert "There is no plot" in iterations[-1].outputs("iterate/iterate.out")[0] or iterations[-1].outputs("iterate/*.svg")
    assert not any(text for one in iterations for text in one.outputs("*/*.err"))


def test_optimization_finds_the_minimum(run, environment):
    """Given a Python with NumPy, then each iteration adds its samples, and the best point comes close to the minimum."""
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    study = run(SPECS / "optimization.yaml", "-s", "1")
    study.await_session()

    iterations = [study, *study.iterations()]
    assert all(set(one.states().values()) == {"FINISHED"} for one in iterations)
    assert len(iterations) == 5
    tables = [list(csv.reader(one.outputs("learn/results.csv")[0].splitlines())) for one in iterations]
    assert [len(table) for table in tables] == [12, 24, 36, 48, 60]
    best = [min(float(value) for _, _, value in table) for table in tables]
    assert best == sorted(best, reverse=True)
    assert best[-1] < best[0]
    assert best[-1] == pytest.approx(-1.9132, abs=0.01)
    x, y, _ = map(float, iterations[-1].outputs("iterate/optimum.csv")[0].split(","))
    assert (x, y) == pytest.approx((-0.5472, -1.5472), abs=0.1)
    assert not any(text for one in iterations for text in one.outputs("*/*.err"))
