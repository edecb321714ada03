"""Studies that studies start: what needs no process."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.machine import machine_id
from maestro_celery_plugin.maestro import nested
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.session import SESSION_VARIABLE, Session


@pytest.fixture
def members(tmp_path, monkeypatch):
    session = Session.create(tmp_path / "session")
    monkeypatch.setenv(SESSION_VARIABLE, str(session.path))
    return Members(session.path)


@pytest.mark.timeout(20)
def test_a_step_does_not_wait_for_ever_for_a_study_without_a_conductor(members, tmp_path, monkeypatch, capsys):
    """Given a study whose conductor has died for good, when a step waits for it, then the step gets code 3 and a message."""
    monkeypatch.setattr(nested, "_DEAD_LIMIT_S", 0.0, raising=False)
    dead = Member(id="1", number=1, root=str(tmp_path / "it"), state=MemberState.RUNNING, process=(2**30, 1), machine=machine_id())
    members.write(dead)
    assert nested._await_end("1") == 3
    assert capsys.readouterr().err == (
        f"maestro: -fg: no conductor runs the study '{tmp_path}/it' any more; `maestro-celery session resume {tmp_path}/it` "
        "lets it go on.\n"
    )
