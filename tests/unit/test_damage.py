"""Damaged files of a study: each command ends with one line that names the file, or does without the file."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner
from ensembles import RELATIVE, a_study

from maestro_celery_plugin.batch.allocation import Allocation
from maestro_celery_plugin.cli import main
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.maestro.cancel import cancel_all
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.report.exit_codes import StudyCode
from maestro_celery_plugin.states import MemberState, WorkerState
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.reasons import Reason, read_reasons, write_reasons
from maestro_celery_plugin.study.session import BrokerLocation, Session

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def plan(tmp_path):
    """A study without a conductor that has every small file."""
    plan, _ = a_study(tmp_path / "study")
    session = Session.create(plan.session)
    session.write_broker(BrokerLocation(url="redis://localhost"))
    session.write_broker_host("127.0.0.1")
    session.heartbeats.write(
        Heartbeat(
            name="w-1", group="w", host="h", node="n", supervisor=(1, 2), process=(3, 4), slots=1, beat=1,
            state=WorkerState.BUSY,
        )
    )
    session.conductors.write(1, study="1")
    Members(session.path).write(Member(id="1", number=1, root=str(plan.root), state=MemberState.RUNNING))
    directory = plan.allocations / "w" / "1"
    directory.mkdir(parents=True)
    Allocation("w", 1, directory, job="7").store()
    write_reasons(plan.reasons, {"sim_X.1": Reason("It is late.")})
    NativeStepState(plan.native / "job").write_job("8")
    (plan.root / "status.csv").write_text("")
    return plan


FILES = {
    "batch.info": True,
    "status.csv": False,
    f"merlin_info/records/{RELATIVE}/manifest.json": True,
    "merlin_info/allocations/w/1/allocation.json": True,
    "merlin_info/reasons.json": False,
    "merlin_info/plain/job/job.json": False,
    "merlin_info/session/secret": False,
    "merlin_info/session/broker.json": False,
    "merlin_info/session/conductors/1.json": False,
    "merlin_info/session/studies/1.json": False,
    "merlin_info/session/workers/w-1.json": False,
}


def empty(path):
    path.write_bytes(b"")


def wrong(path):
    path.write_text("[1, {")


def other_json(path):
    path.write_text("[[1]]")


def binary(path):
    path.write_bytes(os.urandom(500))


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def directory(path):
    path.unlink()
    path.mkdir()


def huge(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


def nested(path):
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [empty, wrong, other_json, binary, fifo, directory, huge, nested])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["status", "explain"])
@pytest.mark.usefixtures("small_stack")
def test_a_damaged_file_is_one_line_or_is_not_needed(plan, name, damage, command):
    damage(plan.root / name)

    answer = CliRunner().invoke(main, [command, str(plan.root)])

    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    if answer.exit_code not in (0, StudyCode.UNCONDUCTED):
        assert answer.stderr.startswith("maestro-celery: error: ")
        assert answer.stderr.count("\n") == 1
        assert str(plan.root) in answer.stderr
    assert answer.exit_code == 1 or not FILES[name]


@pytest.mark.parametrize("damage", [empty, other_json, fifo])
@pytest.mark.parametrize("name", [name for name in FILES if name != "batch.info"])
def test_a_damaged_file_does_not_stop_a_cancellation(plan, capsys, name, damage):
    """Given a damaged file, then `maestro cancel` still requests the end of the workers, and prints no traceback."""
    damage(plan.root / name)

    def cancel():
        plan.cancel_request.touch()
        return 0

    cancel_all(cancel, [plan.root])

    assert Session(plan.session).stop_requested
    printed = capsys.readouterr()
    if name.endswith("allocation.json"):
        assert str(plan.root / name) in printed.out + printed.err


@pytest.mark.parametrize("text", ["", "00" * 31, "x" * 64, "00" * 32 + "\n"])
def test_a_secret_that_is_empty_or_short_is_refused(plan, text):
    (plan.session / "secret").write_text(text)
    session = Session(plan.session)
    for read in (lambda: session.secret, lambda: session.id, lambda: session.queue("q")):
        with pytest.raises(DamagedFileError, match=r"/secret' is damaged: it must have 64 hexadecimal digits; "):
            read()


def test_a_reason_of_another_type_is_no_reason(plan):
    plan.reasons.write_text(json.dumps({"sim_X.1": {"text": 5}}))
    assert read_reasons(plan.reasons) == {}
