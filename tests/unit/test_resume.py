"""Resume: it refuses a directory without an ensemble study and a study with a live conductor."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner
from ensembles import a_study
from filelock import FileLock

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.study.session import Session


def error_of(path):
    answer = CliRunner().invoke(main, ["resume", str(path)], catch_exceptions=False)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    return answer.stderr


def test_a_directory_without_a_study_is_refused(tmp_path):
    assert error_of(tmp_path) == (
        f"maestro-celery: error: '{tmp_path}' is not the directory of a Maestro study (no readable batch.info: No such file or directory); "
        "give the directory that `maestro run` has created.\n"
    )
    assert "is not the directory of a Maestro study" in error_of(tmp_path / "none")


def test_a_batch_info_that_is_not_yaml_is_refused(tmp_path):
    (tmp_path / "batch.info").write_text("{")
    assert f"'{tmp_path}/batch.info' is damaged: it is not YAML; restore it from a backup" in error_of(tmp_path)


def test_the_message_about_another_version_names_the_value_that_cannot_be_read(tmp_path):
    plan, _ = a_study(tmp_path / "study")
    batch = plan.to_batch()
    batch["settings"]["batch"] = {"nodes": "some"}
    (plan.root / "batch.info").write_text(yaml.safe_dump(batch))
    text = error_of(plan.root)
    assert "was created by another version of maestro-celery-plugin; use that version, or launch the study again" in text
    assert "(settings.batch.nodes: " in text
    del batch["rows"]
    (plan.root / "batch.info").write_text(yaml.safe_dump(batch | {"settings": plan.to_batch()["settings"]}))
    assert "launch the study again (batch.info has no key 'rows')." in error_of(plan.root)


@pytest.mark.parametrize("batch", [{"type": "local"}, {"type": "slurm", "study": "/x"}, [], {"type": "celery"}])
def test_a_study_of_maestro_alone_is_refused(tmp_path, batch):
    (tmp_path / "batch.info").write_text(yaml.safe_dump(batch))
    assert error_of(tmp_path) == (
        f"maestro-celery: error: '{tmp_path}' is a Maestro study without an ensemble; use `maestro status` and "
        "`maestro cancel`.\n"
    )


def test_a_study_with_a_live_conductor_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("maestro_celery_plugin.maestro.resume.LOCK_LIMIT_S", 0.05)
    plan, _ = a_study(tmp_path / "study")
    Session.create(plan.session)
    with FileLock(plan.info / "conductor.lock"):
        text = error_of(plan.root)

    assert text.startswith(f"maestro-celery: error: A conductor of the study '{plan.root}' is running or starting; ")
    assert f"`maestro cancel {plan.root}` cancels the study." in text


def test_a_cancellation_that_does_not_end_is_awaited_for_some_time(tmp_path, monkeypatch):
    """Given a conductor that cancels its study and does not end, then the resume says that it waits, and then what to do."""
    monkeypatch.setattr("maestro_celery_plugin.maestro.resumed_conductor._SILENT_WAIT_S", 0.0)
    monkeypatch.setattr("maestro_celery_plugin.maestro.resumed_conductor._CANCELLATION_LIMIT_S", 0.0)
    plan, _ = a_study(tmp_path / "study")
    Session.create(plan.session).conductors.write(1, study=plan.id, is_ending=True)
    with FileLock(plan.info / "conductor.lock"):
        note, error = error_of(plan.root).splitlines()

    assert note.startswith("maestro-celery: note: the study is being cancelled, and its conductor has not ended yet; ")
    assert error.startswith(f"maestro-celery: error: The conductor of the study '{plan.root}' has not ended after its cancellation; ")
    assert error.endswith(" Resume the study when it has ended.")


def test_options_that_contradict_each_other_are_refused(tmp_path):
    answer = CliRunner().invoke(main, ["resume", "--failed", "--step", "sim", str(tmp_path)])

    assert answer.exit_code == 2
    assert "--failed and --step exclude each other." in answer.stderr
