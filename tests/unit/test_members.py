"""The members of a session: which of them live, and what the first and the last one do."""

from __future__ import annotations

import dataclasses
import os
import subprocess

import pytest
from ensembles import a_study
from filelock import FileLock
from support import wait_for

from maestro_celery_plugin.conductor.relatives import Relatives
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.host.conductors import Conductors
from maestro_celery_plugin.machine import machine_id
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study import conductor_beats, conductor_lock, members
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.session import Session


@pytest.fixture
def plan(tmp_path):
    plan, _ = a_study(tmp_path / "study")
    Session.create(plan.session)
    return plan


@pytest.fixture
def here(plan):
    return Members(plan.session)


@pytest.fixture
def lock(plan):
    """Start the conductor of a study in this process, as a member of the session of `plan`."""
    locks = []

    def acquire(study_id="1"):
        root = plan.root.parent / f"study{study_id}"
        (root / "merlin_info").mkdir(parents=True, exist_ok=True)
        locks.append(conductor_lock.acquire(dataclasses.replace(plan, root=root, id=study_id, home=plan.info)))
        return locks[-1]

    yield acquire
    for one in locks:
        one.release()


def dead_process():
    process = subprocess.Popen(["true"])
    start = ProcessId.of(process.pid).start
    process.wait()
    return process.pid, start


OWN = (os.getpid(), ProcessId.of(os.getpid()).start)


@pytest.mark.parametrize(
    ("state", "process", "machine", "expected"),
    [
        (MemberState.LAUNCHED, OWN, "", True),
        (MemberState.LAUNCHED, None, "", False),
        (MemberState.LAUNCHED, None, "elsewhere", True),
        (MemberState.REQUESTED, None, "", True),
        (MemberState.RUNNING, OWN, "", True),
        (MemberState.RUNNING, None, "", False),
        (MemberState.ENDED, OWN, "", False),
    ],
)
def test_a_member_lives_while_it_runs_or_is_about_to(plan, here, state, process, machine, expected):
    member = Member(
        id="1", root=str(plan.root), state=state, process=process or dead_process(), machine=machine or machine_id()
    )
    here.write(member)
    assert here.is_alive(member) is expected
    assert bool(here.living()) is expected


def test_a_conductor_on_another_machine_lives_while_it_holds_the_lock(plan, here, monkeypatch):
    member = Member(id="1", root=str(plan.root), state=MemberState.RUNNING, machine="elsewhere")
    here.write(member)
    monkeypatch.setattr(members, "REQUEST_LIMIT_S", 0.0)
    assert not here.is_alive(member)
    with FileLock(plan.conductor_lock).acquire(timeout=0):
        assert here.is_alive(member)


def test_a_forgotten_request_does_not_keep_a_session(plan, here, monkeypatch):
    here.write(Member(id="1", root=str(plan.root), state=MemberState.REQUESTED))
    assert here.living()
    monkeypatch.setattr(members, "REQUEST_LIMIT_S", 0.0)
    assert not here.living()


def test_only_changed_members_are_read_again(here, monkeypatch):
    for number in (2, 1):
        here.write(Member(id=str(number), number=number))
    assert [one.number for one in here.all()] == [1, 2]
    reads = []
    read = here.read
    monkeypatch.setattr(here, "read", lambda study_id: reads.append(study_id) or read(study_id))
    here.change("2", number=7)
    reads.clear()
    assert [one.number for one in here.all()] == [1, 7]
    assert reads == ["2"]


def test_the_last_member_lets_the_workers_end(plan, here, lock):
    session = Session(plan.session)
    first, second = lock("1"), lock("2")
    assert [one.id for one in first.leave()] == ["2"]
    assert not session.stop_requested
    assert second.leave() == []
    assert session.stop_requested
    assert {one.state for one in here.all()} == {MemberState.ENDED}


def test_the_last_member_looks_for_others_that_nfs_does_not_show(plan, lock, monkeypatch):
    """Given NFS, which caches names until this node changes their directory, then no living member is overlooked: the
    request to stop would end its workers, and each worker that starts later."""
    changed = []
    for module in (members, conductor_beats):
        monkeypatch.setattr(module, "refresh_directory", lambda path: changed.append(path.name))
    one = lock("1")
    changed.clear()

    one.leave()

    assert changed == ["studies", "conductors"]


def test_the_first_member_revokes_the_requests_of_before_and_a_further_one_does_not(plan, lock):
    session = Session(plan.session)
    session.request_stop()
    first = lock("1")
    assert not session.stop_requested

    session.close()
    with pytest.raises(StudyError, match=r"^The session in '.*' is being stopped; wait for its end, and resume the study"):
        lock("2")
    first.release()
    lock("3")
    assert not session.is_closed


def test_relatives_need_all_their_groups_until_they_say_which(plan, here, lock):
    groups = {"a": {}, "b": {}}
    for study_id, state in (("1", MemberState.REQUESTED), ("2", MemberState.RUNNING)):
        here.write(Member(id=study_id, root=str(plan.root), state=state, groups=groups, process=OWN, machine=machine_id()))
    session = Session(plan.session)
    relatives = Relatives(session, "3")
    relatives.refresh()
    assert [one.id for one in relatives.living] == ["1", "2"]
    assert relatives.needs == {"a", "b"}

    session.conductors.write(1, study="2", needs=["b"])
    here.change("1", state=MemberState.ENDED)
    relatives = Relatives(session, "3")
    relatives.refresh()
    assert relatives.needs == {"b"}


def test_a_conductor_that_has_died_keeps_no_allocation_busy(plan, here):
    here.write(Member(id="1", root=str(plan.root), state=MemberState.RUNNING, process=dead_process(), machine=machine_id()))
    session = Session(plan.session)
    session.conductors.write(1, ["sim/1"], study="1")
    Relatives(session, "2").refresh()
    assert session.conductors.read_all().working == ()


def test_the_environment_of_a_member_is_private(here):
    here.write(Member(id="1"))
    here.write_environment("1", {"TOKEN": "secret"})
    assert here.read_environment("1") == {"TOKEN": "secret"}
    assert here.environment_of("1").stat().st_mode & 0o777 == 0o600
    assert [one.id for one in here.all()] == ["1"]
    here.remove("1")
    assert here.read_environment("1") == {}


def test_a_conductor_that_cannot_start_is_told_to_its_launch(plan, here, capfd):
    member = Member(
        id="2", root=str(plan.root), state=MemberState.REQUESTED, conductor=("/no/such/conductor",),
        directory=str(plan.root), log=str(plan.root / "study.txt"),
    )  # fmt: skip
    here.write(member)
    Conductors(Session(plan.session), here).look(here.all())
    assert here.read("2").state is MemberState.ENDED
    assert "/no/such/conductor" in here.read("2").problem
    assert "cannot be started" in capfd.readouterr().err


def test_a_closed_session_starts_no_conductor(plan, here):
    here.write(Member(id="2", root=str(plan.root), state=MemberState.REQUESTED, conductor=("true",)))
    Session(plan.session).close()
    Conductors(Session(plan.session), here).look(here.all())
    assert here.read("2").state is MemberState.REQUESTED


def test_a_launch_on_another_machine_that_has_died_early_does_not_live_for_ever(plan, here):
    """Given a launch that was killed before its study had a directory, then it counts as dead when it has taken too long."""
    here.write(Member(id="2", root=str(plan.root.parent / "none"), state=MemberState.LAUNCHED, machine="another", process=OWN))
    assert here.is_alive(here.read("2"))

    old = here.path_of("2").stat().st_mtime - members.LAUNCH_LIMIT_S - 1
    os.utime(here.path_of("2"), (old, old))

    assert not here.is_alive(here.read("2"))


def test_a_directory_that_cannot_be_read_hides_no_other_member(plan, here, monkeypatch):
    """Given the directory of one study that gives an error, then the others of the session are known, and it lives by its
    process."""
    for number, process in (("2", OWN), ("3", dead_process())):
        here.write(Member(id=number, root=str(plan.root.parent / number), state=MemberState.RUNNING, machine=machine_id(), process=process))

    def fail(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(members, "is_locked", fail)

    assert [member.id for member in here.living()] == ["2"]


@pytest.fixture
def plain(plan, here):
    """A study without an ensemble whose conductor is requested, and that notes each start."""
    root = plan.root.parent / "plain"
    root.mkdir()
    here.write(Member(
        id="2", root=str(root), state=MemberState.REQUESTED, conductor=("sh", "-c", "echo >> starts"), directory=str(root),
        log=str(root / "log"),
    ))  # fmt: skip
    return root


@pytest.mark.parametrize("name", ["locked", "change"])
def test_a_conductor_whose_start_cannot_be_noted_is_started_once(plan, here, plain, monkeypatch, name):
    """Given a full disk when a conductor has started, then it is noted later that the study has run, and it runs once."""
    conductors = Conductors(Session(plan.session), here)

    def fail(*args, **values):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(here, name, fail)
        conductors.look(here.all())
        wait_for(lambda: (plain / "starts").exists(), "the start")
        wait_for(lambda: all(child.poll() is not None for child in conductors._children.values()), "its end")
        conductors.look(here.all())
    conductors.look(here.all())
    conductors.look(here.all())

    assert (plain / "starts").read_text() == "\n"
    assert here.read("2").state is MemberState.ENDED
