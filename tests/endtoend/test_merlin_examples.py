"""Merlin's published examples, from its wheel, run without changes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from support import BIN

from maestro_celery_plugin.maestro.schema import specification_schema
from maestro_celery_plugin.maestro.validation import validate
from maestro_celery_plugin.spec.problems import Kind

EXAMPLES = "merlin/examples/workflows/hello/"


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """The directory of Merlin's hello examples."""
    directory = tmp_path_factory.mktemp("merlin")
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(directory), "merlin==1.13.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(answer.stderr)
        pytest.skip("the wheel of merlin cannot be downloaded")
    with zipfile.ZipFile(next(directory.glob("merlin-*.whl"))) as wheel:
        wheel.extractall(directory, [name for name in wheel.namelist() if name.startswith(EXAMPLES)])
    return directory / EXAMPLES


@pytest.mark.parametrize("name", ["hello.yaml", "hello_samples.yaml"])
def test_validation_and_schema_accept_an_example(name, examples):
    assert not [finding for finding in validate(str(examples / name)) if finding.problem.kind is not Kind.WARNING]
    schema = specification_schema()
    assert not list(jsonschema.Draft7Validator(schema).iter_errors(yaml.safe_load((examples / name).read_text())))


def test_hello(run, examples):
    study = run(examples / "hello.yaml").await_end()

    assert set(study.states().values()) == {"FINISHED"}
    assert study.outputs("step_1/*/*.out") == ["hello, world!\n", "hola, mundo!\n"]
    assert study.outputs("step_2/*.out") == ["Hurrah, we did it!\n"]


def test_hello_samples(run, examples, environment):
    """Given an activated environment with the requirements of the example, then the example runs."""
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"

    study = run(examples / "hello_samples.yaml").await_end()

    assert set(study.states().values()) == {"FINISHED"}
    names = (study.path / "merlin_info" / "samples.csv").read_text().split()
    assert len(names) == 3
    assert study.outputs("step_1/GREET.hola/*/*.out") == [f"hola, {name}!\n" for name in names]
