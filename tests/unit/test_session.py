"""The session: only its owner can read it, and only a process with its secret can sign messages."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from pathlib import Path

import pytest

from maestro_celery_plugin.broker.messages import Signer
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.machine import machine_id
from maestro_celery_plugin.states import WorkerState
from maestro_celery_plugin.study.conductor_beats import ConductorBeat
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.session import BrokerLocation, Session
from maestro_celery_plugin.study.worker_identity import claim_name

MESSAGE = ("/study", "sim/X.1", 1, 0, 10, 3)
BEAT = Heartbeat(
    name="w-1", group="w", host="h1", node="n1", supervisor=(10, 11), process=(12, 13), slots=4, beat=5,
    state=WorkerState.BUSY,
)  # fmt: skip


@pytest.fixture
def session(tmp_path):
    return Session.create(tmp_path / "study" / "session")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_can_read_the_session(tmp_path):
    before = os.umask(0)
    try:
        session = Session.create(tmp_path / "session")
        session.write_broker(BrokerLocation(url="redis://:secret@host"))
        session.heartbeats.write(BEAT)
        session.conductors.write(1, study="s")
    finally:
        os.umask(before)

    assert mode(session.path) == 0o700
    for name in ("secret", "broker.json", "conductors/s.json", "workers/w-1.json"):
        assert mode(session.path / name) == 0o600, name


def test_an_existing_directory_becomes_private(tmp_path):
    (tmp_path / "session").mkdir(mode=0o777)
    assert mode(Session.create(tmp_path / "session").path) == 0o700


def test_each_session_has_its_own_id_and_queues(session, tmp_path):
    other = Session.create(tmp_path / "other")

    assert session.id != other.id
    assert session.queue("q") != other.queue("q")
    assert Session(session.path).id == session.id
    assert session.queue("q") == f"{session.id}.q"


def test_the_id_does_not_contain_the_secret(session):
    assert (session.path / "secret").read_text()[:8] not in session.id


def test_a_missing_session_is_an_error(tmp_path):
    with pytest.raises(StudyError, match=r"The session '.*/none' cannot be read: No such file or directory\."):
        _ = Session(tmp_path / "none").id


# --- signatures --------------------------------------------------------------------------------------


def test_a_signature_is_valid_for_its_message(session):
    assert Signer(session.secret).verify(Signer(session.secret).sign(*MESSAGE), *MESSAGE)


@pytest.mark.parametrize("field", range(len(MESSAGE)))
def test_a_message_with_a_changed_field_is_refused(session, field):
    changed = [*MESSAGE]
    changed[field] = changed[field] + ("x" if isinstance(changed[field], str) else 1)

    assert not Signer(session.secret).verify(Signer(session.secret).sign(*MESSAGE), *changed)


@pytest.mark.parametrize(
    "changed", [MESSAGE[:-1], (*MESSAGE, 1), ("/studysim", "/X.1", *MESSAGE[2:]), ("/study", "sim/X.1", "1", 0, 10, 3)]
)
def test_a_message_with_other_fields_is_refused(session, changed):
    assert not Signer(session.secret).verify(Signer(session.secret).sign(*MESSAGE), *changed)


@pytest.mark.parametrize("signature", [None, 5, b"bytes", ["list"], {}, "", "ü", "\ud800", "0" * 64, True])
def test_a_value_that_is_not_a_signature_is_refused(session, signature):
    assert not Signer(session.secret).verify(signature, *MESSAGE)


def test_a_signature_of_another_session_is_refused(session, tmp_path):
    other = Signer(Session.create(tmp_path / "other").secret)
    assert not Signer(session.secret).verify(other.sign(*MESSAGE), *MESSAGE)


# --- contents ----------------------------------------------------------------------------------------


def test_the_location_of_the_broker_is_stored_and_read(session):
    assert session.read_broker() is None
    location = BrokerLocation(url="redis://h", supervisor=(1, 2), generation="1.1")
    session.write_broker(location)
    assert session.read_broker() == location


def test_the_location_of_the_broker_in_the_format_of_version_0_1_is_read(session):
    (session.path / "broker.json").write_text('{"url": "redis://h", "keeper": [1, 2], "generation": "1.1"}')
    assert session.read_broker() == BrokerLocation(url="redis://h", supervisor=(1, 2), generation="1.1")


def test_heartbeats_are_stored_read_and_removed(session):
    assert session.heartbeats.all() == []
    session.heartbeats.write(BEAT)
    assert session.heartbeats.all() == [BEAT]
    session.heartbeats.remove("w-1")
    session.heartbeats.remove("w-1")
    assert session.heartbeats.all() == []


@pytest.mark.parametrize("state", ["starting", "idle", "busy", "draining", "stopping"])
def test_a_heartbeat_in_the_format_of_version_0_1_is_read(session, state):
    (session.path / "workers" / "w-1.json").write_text(
        '{"name": "w-1", "group": "w", "host": "h1", "node": "n1", "supervisor": [10, 11], "process": [12, 13], "slots": 4, '
        f'"beat": 5, "state": "{state}", "allocation": "", "ends_at": null, "refuses": [3]}}'
    )
    assert session.heartbeats.all() == [dataclasses.replace(BEAT, state=WorkerState(state))]


def test_a_worker_with_a_state_of_another_version_is_not_dead(session):
    session.heartbeats.write(BEAT)
    path = session.heartbeats.path_of("w-1")
    path.write_text(path.read_text().replace('"busy"', '"dancing"'))
    assert session.heartbeats.all() == [dataclasses.replace(BEAT, state=WorkerState.UNKNOWN)]


def test_a_heartbeat_file_that_a_crash_of_its_machine_has_emptied_is_ignored(session):
    session.heartbeats.write(BEAT)
    (session.path / "workers" / "w-2.json").touch()
    assert session.heartbeats.all() == [BEAT]


def test_the_heartbeat_of_the_conductor_is_stored_and_read(session):
    assert session.conductors.read("s") == session.conductors.read_all() == ConductorBeat()
    session.conductors.write(7, {"sim/2", "sim/1"}, study="s")
    expected = ConductorBeat(beat=7, working=("sim/1", "sim/2"), machine=machine_id())
    assert session.conductors.read("s") == session.conductors.read_all() == expected


def test_the_heartbeat_of_a_conductor_tells_that_it_cancels_its_study(session):
    assert not session.conductors.read("s").is_ending
    session.conductors.write(7, study="s", is_ending=True)
    assert session.conductors.read("s").is_ending
    session.conductors.end("s")
    assert not session.conductors.read("s").is_ending


def test_the_heartbeats_of_several_conductors_are_one(session):
    session.conductors.write(7, {"sim/1"}, study="a", needs={"sim"})
    session.conductors.write(5, {"sim/2"}, study="b", needs={"post"})
    assert session.conductors.read_all() == ConductorBeat(
        beat=12, working=("sim/1", "sim/2"), machine=machine_id(), needs=("post", "sim")
    )
    session.conductors.end("b")
    assert session.conductors.read_all().working == ("sim/1",)
    session.conductors.write(6, study="b")  # it does not know yet
    assert session.conductors.read_all().working is None


def test_a_request_to_stop_all_workers_can_be_revoked(session):
    session.request_stop()
    assert session.stop_requested
    assert session.worker_stop_requested("w-1")
    session.revoke_stop()
    session.revoke_stop()
    assert not session.stop_requested
    assert not session.worker_stop_requested("w-1")


def test_one_worker_can_be_stopped(session):
    session.request_worker_stop("w-1")
    assert session.worker_stop_requested("w-1")
    assert not session.worker_stop_requested("w-2")
    assert not session.stop_requested
    session.heartbeats.remove("w-1")
    assert not session.worker_stop_requested("w-1")


def test_a_group_that_cannot_be_read_is_not_there(tmp_path):
    """Given a name that the file system refuses, then the worker reports it without a traceback."""
    session = Session.create(tmp_path / "session")
    assert not session.has_group("g" * 300)
    with pytest.raises(StudyError, match="cannot be read"):
        session.read_group("g" * 300)


def test_a_worker_begins_with_the_number_of_its_rank(tmp_path, monkeypatch):
    """Given many workers of an allocation that begin at the same time, then each claims its name with one operation."""
    session = Session.create(tmp_path / "session")
    touched = []
    touch = Path.touch
    monkeypatch.setattr(Path, "touch", lambda path, **options: (touched.append(path.name), touch(path, **options)))

    assert claim_name(session, "w-1", first=500) == "w-1-500"
    assert claim_name(session, "w-1", first=500) == "w-1-501"  # restarted by the batch system
    assert touched == ["w-1-500.log", "w-1-500.log", "w-1-501.log"]


def test_the_names_of_queues_have_no_character_that_a_shell_interprets(tmp_path):
    session = Session.create(tmp_path / "session")
    assert session.queue("merlin_sim-1.a") == f"{session.id}.merlin_sim-1.a"
    odd = ["a b", "a;b", "a[b", "a'b", "$(A)", "ü", "x" * 201, "x" * 202, "*"]
    names = [session.queue(name) for name in odd]
    assert len(set(names)) == len(odd)
    assert all(re.fullmatch(r"mcp-[0-9a-f]{12}\.[A-Za-z0-9_.-]{1,230}", name) for name in names), names
