"""The versions of the specification that a study keeps, and their tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml
from maestrowf.datastructures.core import ParameterGenerator

from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.provenance import specification_files, write_specifications

TEXT = """# a comment
description: {name: $(NAME), description: d}
batch: {walltime: 1:30:00}
env:
  variables: {NAME: n, WT: 1:30, N: 2, D: $(N)x, L: [1, two], S: $(SPECROOT)/$(MERLIN_SPEC_ARCHIVED_COPY)}
  labels: {LABEL: $(A.label)_$(N)}
study:
- name: sim
  description: d
  run:
    cmd: |
      echo $(X) $(D) $(L) $(LABEL) $(MERLIN_GLOB_PATH)
      cat $(MERLIN_SPEC_ORIGINAL_TEMPLATE) $(MERLIN_SPEC_EXECUTED_RUN)
    max_retries: $(N)
global.parameters: {A: {values: [1], label: A.%%}}
merlin:
  samples: {file: $(MERLIN_INFO)/x.csv, column_labels: [X]}
user: {a: &a [1], b: *a, c: &c {d: *c}}
"""


@pytest.fixture
def plan(tmp_path):
    return StudyPlan(
        root=tmp_path / "study",
        timestamp="20260101-000000",
        settings=Specification.load_specification(str(file(tmp_path))).ensemble,
        specification=tmp_path / "x.yaml",
    )


def file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(TEXT)
    return path


def test_each_version_has_its_content(tmp_path, plan):
    """Given a specification with variables, then the original is equal, the partial has the values of variables in
    `env`, and the expanded version has those of all tokens that are known before the samples exist."""
    plan.info.mkdir(parents=True)
    specification = Specification.load_specification(str(file(tmp_path)))
    write_specifications(plan.specification_files, plan.specification, specification.texts(plan))
    original, partial, expanded = (Path(f) for f in plan.specification_files.values())
    assert original.read_text() == TEXT
    before, after = yaml.safe_load(TEXT), yaml.safe_load(partial.read_text())
    of_specroot = f"{tmp_path}/$(MERLIN_SPEC_ARCHIVED_COPY)"
    variables = {"NAME": "n", "WT": 90, "N": 2, "D": "2x", "L": [1, "two"], "S": of_specroot}
    assert after["env"].pop("variables").items() >= variables.items()
    assert after["env"].pop("labels") == {"LABEL": "$(A.label)_2"}
    assert after.pop("user")["b"] == before.pop("user")["a"]
    assert after == {**before, "env": {}}
    assert "walltime: 1:30:00\n" in partial.read_text()
    assert "cmd: |\n" in partial.read_text()
    content = yaml.safe_load(expanded.read_text())
    assert content["description"]["name"] == "n"
    assert content["study"][0]["run"] == {
        "cmd": f"echo $(X) 2x [1, 'two'] $(A.label)_2 $(MERLIN_GLOB_PATH)\ncat {original} {partial}\n", "max_retries": 2
    }  # fmt: skip
    assert content["env"]["variables"]["S"] == f"{tmp_path}/{expanded}"
    assert content["merlin"]["samples"]["file"] == f"{plan.info}/x.csv"
    assert content["batch"]["walltime"] == "1:30:00"


def test_the_expanded_version_has_the_parameters_of_a_generator(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(OPTIONS, "parameter_generator", True)
    specification = Specification.load_specification(str(file(tmp_path)))
    parameters = ParameterGenerator()
    parameters.add_parameter("B", [1, 2], "B.%%")
    specification.check_parameters(parameters)
    content = yaml.safe_load(specification.texts(plan).expanded)
    assert content["global.parameters"] == {"B": {"values": [1, 2], "label": "B.%%"}}


@pytest.mark.parametrize("name", ["x.yaml", "x.orig.yaml", "x.partial.expanded.yaml"])
def test_a_launch_of_a_version_does_not_add_to_its_name(name):
    files = specification_files(Path("/s/merlin_info"), Path("/a", name)).values()
    assert [Path(f).name for f in files] == [f"x.{kind}.yaml" for kind in ("orig", "partial", "expanded")]


def test_a_specification_without_a_file_has_no_versions(plan):
    assert specification_files(plan.info, None) == {}


def test_the_key_dry_run_makes_a_dry_run(tmp_path, monkeypatch):
    path = file(tmp_path)
    path.write_text(TEXT.replace("walltime: 1:30:00", "dry_run: true"))
    arguments = argparse.Namespace(dry=False, throttle=0, attempts=1, rlimit=1, sleeptime=1, out=None, pargs=None,
        pgen=None, autoyes=True, autono=False, fg=False, usetmp=False, hashws=False, specification=str(path),
        broker=None, broker_host=None)  # fmt: skip
    for name, value in (("launching", True), ("arguments", arguments), ("dry_run", False)):
        monkeypatch.setattr(OPTIONS, name, value)
    Specification.load_specification(str(path))
    assert (arguments.dry, OPTIONS.dry_run) == (True, True)
