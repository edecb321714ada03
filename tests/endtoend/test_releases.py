"""This release shows, explains and resumes a study that an earlier release has launched."""

from __future__ import annotations

import pytest
from releases import RELEASES, restore
from support import Study

FINISHED_BEFORE = (0, 3)
FAILS, WAS_RUNNING = 2, 4


@pytest.fixture(params=RELEASES)
def study(request, tmp_path, environment):
    return Study(restore(request.param, tmp_path), environment)


def test_its_status_is_shown(study):
    status = study.status()
    assert status["state"] == "INTERRUPTED"
    samples = {step["name"]: step["samples"] for step in status["steps"]}
    assert samples["sim_GAIN.1"] == {"total": 6, "finished": 2, "failed": 0, "running": 0, "pending": 4}


def test_it_is_explained(study):
    answer = study.command("maestro-celery", "explain", str(study.path))
    assert answer.returncode == 3, answer.stderr
    assert f"maestro-celery resume {study.path}" in answer.stdout


def test_it_is_resumed_and_finished_samples_do_not_run_again(study):
    """Given finished samples and an interrupted one, when resumed, then the interrupted sample runs `restart`."""
    (study.path / "merlin_info" / "go").touch()
    answer = study.command("maestro-celery", "resume", "-fg", "-s", "1", str(study.path))

    assert answer.returncode == 1, answer.stderr + study.log()  # a sample of each step record fails
    assert set(study.states().values()) == {"FINISHED"}
    for gain in (1, 2):
        for sample, value in enumerate("abcdef"):
            lines = [f"{value} {gain} text with spaces"] + [f"again {value} {gain}"] * (sample == WAS_RUNNING)
            assert study.outputs(f"sim/GAIN.{gain}/0{sample}/result.txt") == ["".join(f"{one}\n" for one in lines)]
    counts = {step["name"]: step["samples"] for step in study.status()["steps"] if step["step"] == "sim"}
    assert set(counts) == {"sim_GAIN.1", "sim_GAIN.2"}
    assert all((one["finished"], one["failed"]) == (5, 1) for one in counts.values())
    assert len((study.path / "collect" / "all.txt").read_text().splitlines()) == 2 * (6 + 1)
    study.await_end()


def test_a_study_with_values_that_a_specification_must_not_have_today_is_shown_explained_and_resumed(study):
    """Release 0.1 accepted keys of any type, dates, and numbers that are not finite."""
    path = study.path / "batch.info"
    text = path.read_text().replace("  batch: {}", "  batch: {launcher_args: {1: fast, d: 2024-01-01, i: .inf}}")
    text = text.replace("idle_limit: 60", "idle_limit: .nan\n        warn: .inf\n        batch: {args: {null: 1}}")
    path.write_text(text)
    assert "launcher_args" in text and "null: 1" in text

    assert study.status()["state"] == "INTERRUPTED"
    explained = study.command("maestro-celery", "explain", str(study.path))
    assert f"maestro-celery resume {study.path}" in explained.stdout, explained.stderr
    (study.path / "merlin_info" / "go").touch()
    answer = study.command("maestro-celery", "resume", "-fg", "-s", "1", str(study.path))

    assert answer.returncode == 1, answer.stderr + study.log()  # a sample of each step record fails
    assert set(study.states().values()) == {"FINISHED"}
    study.await_end()
