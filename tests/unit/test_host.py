"""The host of a session: when it asks the workers to stop."""

from __future__ import annotations

import signal

import pytest

from maestro_celery_plugin.host.host import Host
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member
from maestro_celery_plugin.study.session import Session


@pytest.fixture
def host(tmp_path):
    session = Session.create(tmp_path / "session")
    before = signal.getsignal(signal.SIGTERM)
    yield Host(session)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_study_that_is_resumed_while_the_host_looks_keeps_its_workers(host, monkeypatch, is_resumed):
    """Given a host that has just read that all studies have ended, when one is resumed, then its workers need not stop."""
    members = host._members
    members.write(Member(id="1", root="/study", state=MemberState.ENDED))
    look = host._conductors.look

    def resume(known):
        look(known)
        if is_resumed:
            members.change("1", state=MemberState.RUNNING)

    monkeypatch.setattr(host._conductors, "look", resume)

    host._look_at_members()

    assert host._session.stop_requested is not is_resumed


def test_an_error_of_a_file_does_not_end_the_host(host, monkeypatch):
    def fail():
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(host._members, "all", fail)
    monkeypatch.setattr(host._members, "have_changed", lambda: True)

    host._look()
