"""The command that runs when a study ends: it cannot hold the conductor up."""

from __future__ import annotations

from types import SimpleNamespace

from support import processes_of, wait_for

from maestro_celery_plugin.maestro import notification
from maestro_celery_plugin.report.model import StudyState


def test_a_command_that_does_not_end_is_killed_and_logged(tmp_path, monkeypatch, caplog):
    status = SimpleNamespace(study="s", state=StudyState.FINISHED, failed_samples=0)
    monkeypatch.setattr(notification, "StatusReader", lambda root: SimpleNamespace(read=lambda: status))
    monkeypatch.setattr(notification, "LIMIT_S", 0.3)
    marker = f"{tmp_path}/marker"

    notification._run(f"sh -c 'sleep 1000; : {marker}' & wait", SimpleNamespace(root=tmp_path, info=tmp_path))

    assert caplog.messages == ["The notify command took longer than 0 s and was killed."]
    wait_for(lambda: not processes_of(marker), "the end of the command")


def test_a_study_that_cannot_be_read_has_no_notification(tmp_path, caplog):
    notification._notify(tmp_path)
    assert caplog.messages[0].startswith("The notify command has not run: ")
