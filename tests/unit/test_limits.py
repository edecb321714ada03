"""Limits: those of `maestro update` and of `resume` stay when a conductor dies."""

from __future__ import annotations

import os
import subprocess

import pytest
from click.testing import CliRunner
from support import BIN

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.maestro.limits import Limits, apply_limits, store_update
from maestro_celery_plugin.maestro.step_graph import load_study, pickle_of
from maestro_celery_plugin.study.plan import StudyPlan

SPEC = """\
description: {name: limits, description: d}
study:
  - {name: sim, description: d, run: {cmd: "echo $(X)", restart: "echo again"}}
merlin:
  samples:
    generate: {cmd: "seq 1 4 > $(MERLIN_INFO)/a.csv"}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [X]
"""


def maestro(directory, *words):
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    command = [BIN / "maestro", *words]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd=directory)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    directory = tmp_path_factory.mktemp("limits")
    (directory / "limits.yaml").write_text(SPEC)
    maestro(directory, "run", "-n", "-t", "1", "-r", "2", "-o", str(directory / "study"), "limits.yaml")
    return StudyPlan.read(directory / "study")


@pytest.fixture
def plan(launched):
    """The study of `launched`, which a test may change."""
    pickle = pickle_of(launched.root)
    content = pickle.read_bytes()
    yield launched
    pickle.write_bytes(content)
    (launched.info / "limits.json").unlink(missing_ok=True)
    launched.update_request.unlink(missing_ok=True)


def limits_of(plan):
    study = load_study(plan.root)
    return study._submission_throttle, study._restart_limit, study._submission_attempts


def test_an_update_stays_for_the_next_conductor(plan):
    """Given a conductor that has read an update and has died, when the study resumes, then it has the limits of the update."""
    answer = maestro(plan.root.parent, "update", "--throttle", "4", "--sleep", "7", "study")
    assert "Writing updated study config" in answer.stdout
    assert answer.stderr == ""
    plan.update_request.unlink()
    assert limits_of(plan) == (1, 2, 1)

    limits = apply_limits(plan, Limits())

    assert limits == Limits(throttle=4, sleep=7)
    assert limits_of(plan) == (4, 2, 1)


def test_later_limits_overrule_earlier_ones_and_a_request_that_no_conductor_has_read(plan):
    store_update(plan, {"throttle": 2, "rlimit": 5, "sleep": None})
    plan.update_request.write_text("{throttle: 3, rlimit: 6, sleep: null}")

    assert apply_limits(plan, Limits(throttle=0, attempts=3)) == Limits(throttle=0, rlimit=6, attempts=3)
    assert limits_of(plan) == (0, 6, 3)
    assert not plan.update_request.exists()
    assert apply_limits(plan, Limits(rlimit=1)) == Limits(throttle=0, rlimit=1, attempts=3)
    assert limits_of(plan) == (0, 1, 3)


def test_without_changes_the_pickle_of_the_study_is_not_written(plan):
    before = pickle_of(plan.root).stat()
    assert apply_limits(plan, Limits()) == Limits()
    assert apply_limits(plan, Limits(throttle=1)) == Limits(throttle=1)
    assert pickle_of(plan.root).stat().st_ino == before.st_ino


@pytest.mark.parametrize("text", ["", "[1", "{throttle: many}", "7", "\0"])
def test_a_damaged_request_or_store_counts_as_none(plan, text):
    plan.update_request.write_text(text)
    (plan.info / "limits.json").write_text(text)
    assert apply_limits(plan, Limits()) == Limits()
    assert limits_of(plan) == (1, 2, 1)


@pytest.mark.parametrize("option", [("-t", "-1"), ("-r", "-1"), ("-a", "0"), ("-s", "x")])
def test_limits_that_maestro_does_not_accept_are_refused(option):
    answer = CliRunner().invoke(main, ["resume", *option, "study"])
    assert answer.exit_code == 2
    assert f"Invalid value for '{option[0]}'" in answer.stderr
