"""Merlin's published examples, from its wheels, run without changes, or are refused before launch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest
import yaml
from support import Study

from maestro_celery_plugin.maestro.schema import specification_schema
from maestro_celery_plugin.maestro.validation import validate
from maestro_celery_plugin.spec.problems import Kind

pytestmark = pytest.mark.timeout(600)  # the first test waits for the installation of Merlin

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

# Examples that tests below run, and examples that a dry run stages: they need MPI, Flux, OpenFOAM, a `merlin run` in a
# step, a NumPy before 1.24, or half a minute. `null_spec` runs in tests/slurm.
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
