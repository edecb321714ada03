"""Studies that studies start: what needs no process."""

from __future__ import annotations

import argparse
import os

import pytest
from support import PATIENCE_S

from maestro_celery_plugin.machine import machine_id
from maestro_celery_plugin.maestro import joining, nested
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.spec.overrides import Overrides
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.session import AGAIN_VARIABLE, SESSION_VARIABLE, Session

DEAD = (2**30, 1)
OWN = (os.getpid(), ProcessId.of(os.getpid()).start)


@pytest.fixture
def members(tmp_path, monkeypatch):
    session = Session.create(tmp_path / "session")
    monkeypatch.setenv(SESSION_VARIABLE, str(session.path))
    return Members(session.path)


@pytest.mark.timeout(PATIENCE_S)
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


@pytest.mark.parametrize(
    ("state", "machine", "process", "is_started_again"),
    [
        (MemberState.LAUNCHED, "", DEAD, True),
        (MemberState.LAUNCHED, "another", DEAD, True),
        (MemberState.LAUNCHED, "", OWN, False),
        (MemberState.REQUESTED, "another", DEAD, False),
        (MemberState.ENDED, "", DEAD, False),
    ],
)
def test_a_study_whose_launch_was_killed_is_launched_by_the_next_attempt(
    members, monkeypatch, state, machine, process, is_started_again
):
    """Given a sample that was killed while it launched a study, when it runs again, then the study runs, and not otherwise."""
    monkeypatch.setenv(AGAIN_VARIABLE, "1")
    monkeypatch.setattr(joining, "_place", lambda parent: "sim/0")
    monkeypatch.setattr(OPTIONS, "overrides", Overrides())
    parent = Member(id="p", root="/p")
    earlier = Member(
        id="1", number=1, parent="p", root="/c", state=state, machine=machine or machine_id(), process=process,
        started_by="sim/0", specification="child.yaml",
    )  # fmt: skip
    members.write(earlier)

    found = joining._started_before(parent, members.all(), argparse.Namespace(specification="child.yaml"), members)

    assert (found is None) is is_started_again
