"""Merlin's published examples, from its wheels, run without changes, or are refused before launch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest
import yaml
from support import Study

from maestro_celery_plugin.maestro.schema import specification_schema
from maestro_celery_plugin.maestro.validation import validate
from maestro_celery_plugin.spec.problems import Kind

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the installation of Merlin

# Examples that are templates to fill in, or that leave to the user's own batch script what the plugin needs to know.
REFUSED = {
    "hello/my_hello": "description.description: found nothing; text is needed",
    "hpc_demo/hpc_demo": "env.variables.PYTHON: found the placeholder '<INSERT PATH TO VIRTUALENV HERE>'; replace it",
    "iterative_demo/iterative_demo": "env.variables.PYTHON: found the placeholder '<INSERT_PATH_TO_VIRTUALENV_PYTHON>'",
    "lsf/lsf_par": "merlin.resources.workers.simworkers.batch: the walltime is missing",
    "lsf/lsf_par_srun": "merlin.resources.workers.simworkers.batch: the walltime is missing",
    "openfoam_wf/openfoam_wf": "env.variables.N_SAMPLES: found nothing; text or a number or a list is needed",
    "openfoam_wf_no_docker/openfoam_wf_no_docker": "env.variables.N_SAMPLES: found nothing;",
    "openfoam_wf_singularity/openfoam_wf_singularity": "env.variables.N_SAMPLES: found nothing;",
    "slurm/slurm_par": "found 2 nodes; the allocation of worker group 'simworkers' has 1 node; request fewer, or set more",
}

# Examples that tests below run, and examples that a dry run stages: they need MPI, Flux, OpenFOAM, or half a minute, or
# run below and in tests/slurm with what they import.
RUN = {
    "feature_demo/feature_demo",
    "hello/hello",
    "hello/hello_samples",
    "remote_feature_demo/remote_feature_demo",
    "restart/restart",
    "simple_chain/simple_chain",
}
STAGED = {
    "flux/flux_local",
    "flux/flux_par",
    "flux/flux_par_restart",
    "flux/paper",
    "null_spec/null_chain",
    "null_spec/null_spec",
    "openfoam_wf/openfoam_wf_docker_template",
    "openfoam_wf_no_docker/openfoam_wf_no_docker_template",
    "openfoam_wf_singularity/openfoam_wf_singularity_template",
    "optimization/optimization_basic",
    "restart_delay/restart_delay",
    "slurm/slurm_par_restart",
}


@pytest.fixture
def examples(merlins, environment) -> Path:
    """The directory of the examples, in an activated environment that has Merlin and what the examples need."""
    merlin = merlins["1.13.0"]
    environment["PATH"] = f"{merlin.bin}{os.pathsep}{environment['PATH']}"
    return merlin.examples


def names(examples: Path) -> set[str]:
    return {str(path.relative_to(examples).with_suffix("")) for path in examples.rglob("*.yaml")}


def test_each_example_is_tested(merlins):
    assert all(names(merlin.examples) == REFUSED.keys() | RUN | STAGED for merlin in merlins.values())


def test_each_example_is_staged_or_refused(tmp_path, environment, examples):
    def stage(name: str) -> Study:
        study = Study(tmp_path / name.replace("/", "_"), environment)
        answer = study.command("maestro", "run", "--dry", "-y", "-o", str(study.path), str(examples / f"{name}.yaml"))
        study.output, study.code = answer.stdout + answer.stderr, answer.returncode
        return study

    with ThreadPoolExecutor(2) as pool:
        studies = dict(zip(order := sorted(REFUSED.keys() | STAGED), pool.map(stage, order), strict=True))

    assert {name: study.output for name, study in studies.items() if study.code != int(name in REFUSED)} == {}
    for name, text in REFUSED.items():
        *_, last = studies[name].output.strip().splitlines()
        assert last.startswith(f"maestro: error: {Path(name).name}.yaml: ") and text in last
        assert not studies[name].path.exists()


@pytest.mark.parametrize("name", ["hello.yaml", "hello_samples.yaml"])
def test_validation_and_schema_accept_an_example(name, examples):
    assert not [finding for finding in validate(str(examples / "hello" / name)) if finding.problem.kind is not Kind.WARNING]
    schema = specification_schema()
    assert not list(jsonschema.Draft7Validator(schema).iter_errors(yaml.safe_load((examples / "hello" / name).read_text())))


def test_hello(run, examples):
    study = run(examples / "hello" / "hello.yaml", foreground=True)

    assert set(study.states().values()) == {"FINISHED"}
    assert study.outputs("step_1/*/*.out") == ["hello, world!\n", "hola, mundo!\n"]
    assert study.outputs("step_2/*.out") == ["Hurrah, we did it!\n"]


def test_hello_samples(run, examples):
    study = run(examples / "hello" / "hello_samples.yaml", foreground=True)

    assert set(study.states().values()) == {"FINISHED"}
    drawn = (study.path / "merlin_info" / "samples.csv").read_text().split()
    assert len(drawn) == 3
    assert study.outputs("step_1/GREET.hola/*/*.out") == [f"hola, {name}!\n" for name in drawn]


def test_simple_chain(run, examples):
    """Given an example without a `merlin` block, then it is a study of Maestro alone."""
    study = run(examples / "simple_chain" / "simple_chain.yaml", "-s", "1", foreground=True)

    assert set(study.states().values()) == {"FINISHED"}
    assert not list(study.path.glob("step1/*/STEP_ONE_RUNNING*"))


def test_restart(run, examples):
    study = run(examples / "restart" / "restart.yaml", "-s", "1", foreground=True)

    assert set(study.states().values()) == {"FINISHED"}
    assert len(list(study.path.glob("runs/*/restarted"))) == 10
    assert len(list(study.path.glob("runs_rt/*/retried"))) == 10
    for output in study.outputs("runs_rs/*/*.out"):
        ran, header, restarted = output.splitlines()
        assert ran.startswith("ln -s") and "with restart" in header and restarted.startswith(f"{study.path}/build/")


@pytest.mark.parametrize("name", ["feature_demo", "remote_feature_demo"])
def test_feature_demo(run, examples, name):
    """Given a machine without Python 2, when the example runs, then only its step in Python 2 fails."""
    study = run(examples / name / f"{name}.yaml", "-s", "1", foreground=True)

    states = study.states()
    states.pop("python2_hello_X2.0.5")
    assert set(states.values()) == {"FINISHED"}
    assert len(list(study.path.glob("hello/X2.0.5/*/hello_world_output_*.json"))) == 10
    assert (study.path / "verify" / "N_NEW.10.X2.0.5" / "FINISHED").exists()


@pytest.fixture
def iterating(merlins, without_merlin, environment, tmp_path) -> Path:
    """Copies of the examples, in an activated environment without Merlin, so that samples find the small `merlin`."""
    environment["PATH"] = f"{without_merlin}{os.pathsep}{environment['PATH']}"
    shutil.copytree(merlins["1.13.0"].examples, tmp_path / "examples")
    return tmp_path / "examples"


def test_iterative_demo(run, iterating, without_merlin):
    """Given what its first lines say to fill in, then all iterations write into the directory that Merlin uses."""
    specification = iterating / "iterative_demo" / "iterative_demo.yaml"
    filled = {
        "<INSERT_PATH_TO_VIRTUALENV_PYTHON>": str(without_merlin / "python"),
        "type: flux": "type: local",
        "borax, quartz": platform.node(),
    }
    text = specification.read_text()
    for before, after in filled.items():
        assert before in text
        text = text.replace(before, after)
    specification.write_text(text)

    study = run(specification, "-s", "1", "--vars", "MAX_ITER=3", "POST_NPROCS=2")
    study.await_session()
    found = [study, *study.iterations()]

    assert "absolute path" not in study.output
    assert [set(one.states().values()) for one in found] == [{"FINISHED"}] * 3
    assert {one.path.parent for one in found[1:]} == {study.path.parent / "name_studies"}
    results = specification.parent / "name_studies" / "iter_outputs"
    assert {path.name for path in results.iterdir()} == {"cumulative_results.png", *(f"iter_{n}_results.json" for n in (1, 2, 3))}
    assert [sum(json.loads((results / f"iter_{n}_results.json").read_text()).values()) for n in (1, 2, 3)] == [200] * 3
    assert not any(text for one in found for text in one.outputs("*/*.err"))
    workers = [path.name for one in found for path in one.path.glob("merlin_info/workers/*.log")]
    assert sorted(workers) == ["nameworkers-1.log", "postworkers-1.log"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="NumPy before 1.24, whose `np.float` the example uses, needs an older Python")
def test_optimization_basic(run, iterating):
    """Given the example as it is, then its last step runs its `partial.yaml` again, and waits for it (`run --local`)."""
    study = run(iterating / "optimization" / "optimization_basic.yaml", "-s", "1")
    study.await_session()
    (second,) = study.iterations()

    for number, one in enumerate((study, second), 1):
        assert set(one.states().values()) == {"FINISHED"}
        (report,) = one.outputs(f"iterate/optimization_results_iter_{number}.json")
        assert len(json.loads(report)["Results"]["Predicted Optimum Coordinate"]) == 2
        assert (one.path / "iterate" / f"results_iter_{number}.png").exists()
    assert second.path.parent == Path(study.environment["HOME"]) / "optimization_runs"
    assert second.path.name.startswith("rosenbrock_optimization_ITER_2_")
    assert study.outputs("iterate/*.out")[0].splitlines() == [f"Done iteration 1 in {study.path}", "Starting iteration  2"]
    assert second.outputs("iterate/*.out")[0].splitlines()[-1] == "Max iterations reached"
    new = len(study.outputs("run_simulation/*/simulation_results.json")), len(second.outputs("run_simulation/*/simulation_results.json"))
    assert new == (12, 14)
