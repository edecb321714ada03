"""The argument STUDY: a specification stands for the study that was launched with it, and for no other one."""

from __future__ import annotations

import contextlib
import os
import time

import pytest
import yaml
from click.testing import CliRunner
from ensembles import SETTINGS
from filelock import FileLock

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.spec.overrides import Overrides
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

SPEC = """
    description: {NAME, description: d}
    env: {variables: {N: 1, OUTPUT}}
    study: [{name: s, description: d, run: {cmd: echo}}]
    merlin: {resources: {workers: {w: {steps: [s]}}}}
"""


@pytest.fixture
def write(tmp_path):
    """Write a specification."""

    def write(file, name="scan", output="."):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(SPEC.replace("NAME", f"name: {name}").replace("OUTPUT", f"OUTPUT_PATH: {output}"))
        return path

    return write


@pytest.fixture
def launch(tmp_path):
    """Create a study with a conductor, which has this process; without one if it is interrupted."""
    with contextlib.ExitStack() as stack:
        launches = []

        def launch(directory, specification, *, is_running=True, has_begun=True, **variables):
            overrides = Overrides(variables=variables)
            plan = StudyPlan(
                root=tmp_path / directory, timestamp="t", settings=SETTINGS, specification=specification, overrides=overrides
            )
            plan.info.mkdir(parents=True)
            (plan.root / "batch.info").write_text(yaml.dump(plan.to_batch()))
            launches.append(plan)
            os.utime(plan.root / "batch.info", (len(launches), len(launches)))
            session = Session.create(plan.session)
            if has_begun:
                session.conductors.write(1)
            (plan.root / "status.csv").write_text("Step Name,Job ID,Workspace,State\n")
            if is_running:
                stack.enter_context(FileLock(plan.conductor_lock))
            return plan

        yield launch


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("other", ["scan_big_20260101-000000", "scan_20260101-000000", "named"])
def test_a_study_of_another_specification_is_never_meant(write, launch, other):
    """Whatever the name of a study, only those of this file are meant; the message names what was found."""
    mine, others = write("scan.yaml"), write("other.yaml")
    plan = launch(other, others)

    with pytest.raises(StudyError, match=r"No study of 'scan.yaml' is running below .* Give the --vars of its launch, or") as error:
        study_of(mine.relative_to(mine.parent))

    assert (f"'{plan.root}' of '{others}'" in str(error.value)) == other.startswith("scan_")
    with pytest.raises(StudyError, match="No study of"):
        study_of(mine, may_have_ended=True)
    assert study_of(others) == plan.root


def test_a_study_is_found_in_the_directory_that_its_launch_has_named(write, launch, tmp_path, monkeypatch):
    """Given `-o NAME`, and a command in another directory, then the study is found beside its specification."""
    specification = write("specs/scan.yaml", output="results")
    plan = launch("specs/named", specification)
    assert study_of(specification) == plan.root

    second = write("specs/second.yaml", output="results")
    in_output = launch("specs/results/scan_20260101-000000", second)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert study_of(second) == in_output.root
    assert study_of(specification) == plan.root


def test_two_running_studies_of_a_specification_are_not_one(write, launch, capsys):
    """Commands that change something refuse; the monitor takes the newest, and says so; --vars decides between them."""
    specification = write("scan.yaml")
    first, second = launch("a", specification, N="2"), launch("b", specification)

    with pytest.raises(StudyError, match=rf"2 studies of .* are running: '{first.root}' \(--vars N=2\), '{second.root}'\. Give the dir"):
        study_of(specification)
    assert study_of(specification, ["N=2"]) == first.root
    assert study_of(specification, may_have_ended=True) == second.root
    assert f"has 2 studies; this is the newest, '{second.root}'" in capsys.readouterr().err


def test_a_study_that_does_not_run_is_named_with_what_continues_it(write, launch):
    specification = write("scan.yaml")
    plan = launch("named", specification, is_running=False, N="2")

    with pytest.raises(StudyError, match=rf"'{plan.root}' is INTERRUPTED; `maestro-celery resume {plan.root}` continues it\."):
        study_of(specification)
    with pytest.raises(StudyError, match=rf"other values of --vars: '{plan.root}' \(--vars N=2\)"):
        study_of(specification, ["N=3"])
    assert study_of(specification, may_have_ended=True) == plan.root


def test_a_study_whose_conductor_starts_counts_as_running(write, launch):
    specification = write("scan.yaml")
    plan = launch("named", specification, is_running=False, has_begun=False)
    os.utime(plan.root / "batch.info", (time.time(), time.time()))

    assert study_of(specification) == plan.root


def test_the_versions_of_a_specification_in_a_study_stand_for_it(write, launch):
    plan = launch("named", write("scan.yaml"))
    for file in (*plan.specification_files.values(), plan.root / "scan.yaml"):
        write(file)
        assert study_of(plan.root / file) == plan.root


def test_several_variables_may_follow_one_option(write, launch):
    specification = write("scan.yaml")
    launch("named", specification, N="2", OUTPUT_PATH="results")

    answer = CliRunner().invoke(main, ["monitor", "--timeout", "0.1", "--vars", "N=2", "OUTPUT_PATH=results", str(specification)])

    assert answer.exit_code == 4, answer.output
    assert "named  RUNNING" in answer.output
