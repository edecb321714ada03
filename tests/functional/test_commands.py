"""The commands of `maestro-celery`: each mistake is one message without a traceback."""

from __future__ import annotations

import os
import subprocess

import pytest
from click.testing import CliRunner
from fakes.clusters import FakeCluster
from support import BIN

from maestro_celery_plugin.cli import main

SPEC = """
description: {name: s, description: d}
merlin: {}
study:
- {name: a, description: d, run: {cmd: "true"}}
"""
FLUX = SPEC + "batch: {type: flux, nodes: 1}\n"


@pytest.fixture
def error_of(tmp_path):
    def error_of(*words, **variables):
        answer = subprocess.run(
            [BIN / "maestro-celery", *words], cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert answer.returncode in (1, 2), answer
        assert "Traceback" not in answer.stderr
        return answer.stderr.splitlines()[-1]

    return error_of


def test_a_misspelt_command_has_a_suggestion(error_of):
    assert error_of("statu") == "Error: No such command 'statu'. Did you mean 'status'?"
    assert error_of("zzz") == "Error: No such command 'zzz'."


@pytest.mark.parametrize("command", ["workers", "allocation"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"root:x:0:0\n", "the file has no blocks such as 'description' and 'study'; give the YAML file of a study."),
        (b"a: [1\n", "Maestro cannot read it as a specification ("),
        (b"\xff\xfe\xff", "Maestro cannot read it as a specification ("),
        (SPEC.replace("merlin: {}", "").encode(), "there is no 'merlin' block, so that the study has no workers."),
        (SPEC.encode() + b"# \xe9", "the file is not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 1"),
        (SPEC.encode("utf-16"), "the file is not UTF-8 ('utf-8' codec can't decode byte 0xff in position 0: "),
        (SPEC.encode("utf-16-be"), "invalid YAML: unacceptable character #x0000"),
        (SPEC.replace('"true"', "&c [*c]").encode(), "study.a.run.cmd.0: the block contains itself"),
        (SPEC.encode() + b"user: " + b"[" * 5000, "invalid YAML: "),
    ],
    ids=["text", "no yaml", "bytes", "no ensemble", "latin-1", "utf-16", "utf-16 without a mark", "alias", "nested"],
)
@pytest.mark.usefixtures("small_stack")
def test_a_file_that_is_no_specification_of_an_ensemble_has_one_line(command, content, problem, tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)

    answer = CliRunner().invoke(main, [command, "x.yaml"])

    assert isinstance(answer.exception, SystemExit), answer.exception
    assert answer.stderr.splitlines()[-1].startswith(f"maestro-celery: error: x.yaml: {problem}")


def test_the_allocation_of_flux_needs_its_python_package(error_of, tmp_path):
    (tmp_path / "x.yaml").write_text(FLUX)
    assert error_of("allocation", "x.yaml") == (
        "maestro-celery: error: The batch script of allocation 'default_worker' cannot be written: this Python has no "
        "package 'flux', which Maestro's adapter for 'flux' needs; add it to PYTHONPATH."
    )


def test_the_allocation_says_why_the_package_of_flux_cannot_be_imported(error_of, tmp_path):
    """Given a package of Flux without a library that it imports, then one line names this library."""
    package = tmp_path / "packages" / "flux"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import no_cffi\n")
    (tmp_path / "x.yaml").write_text(FLUX)
    assert error_of("allocation", "x.yaml", PYTHONPATH=str(package.parent)) == (
        "maestro-celery: error: The batch script of allocation 'default_worker' cannot be written: this Python cannot "
        "import the package 'flux', which Maestro's adapter for 'flux' needs (No module named 'no_cffi'); install what it "
        "lacks in the environment of Maestro."
    )


@pytest.fixture
def flux(tmp_path):
    with FakeCluster(tmp_path / "cluster", "flux") as simulated:
        yield simulated


def test_the_allocation_prints_only_scripts(tmp_path, flux):
    """Given an adapter of Maestro that prints, then only the script is printed."""
    (tmp_path / "x.yaml").write_text(FLUX)
    answer = subprocess.run(
        [BIN / "maestro-celery", "allocation", "x.yaml"], cwd=tmp_path, env=flux.insert_into(dict(os.environ)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = answer.stdout.splitlines()
    assert lines[0] == "# allocation 'default_worker' of worker group 'default_worker', by flux"
    assert lines[1] == "#!/bin/bash"
    assert not [line for line in lines if line.startswith("INFO")]


def test_the_allocation_says_that_flux_does_not_answer(error_of, tmp_path, flux):
    (tmp_path / "x.yaml").write_text(FLUX)
    flux.go_away()
    assert error_of("allocation", "x.yaml", **flux.insert_into(dict(os.environ))) == (
        "maestro-celery: error: The batch system 'flux' does not answer now: [Errno 2] Unable to connect to Flux: broker "
        "socket /run/flux/local was not found"
    )
