"""Notifications: which command runs, for which events, what it receives, and that it cannot hold anything up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ensembles import SETTINGS
from filelock import FileLock
from msgspec.structs import replace
from support import PATIENCE_S, processes_of, wait_for

from maestro_celery_plugin.maestro import notification
from maestro_celery_plugin.maestro.notification import Notifications
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.report import notifier
from maestro_celery_plugin.report.notification import notification_of
from maestro_celery_plugin.spec import notify_command as notify_command_module
from maestro_celery_plugin.spec.notify_command import notify_problem, words_of
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.notifications import (
    NOTIFIER_MODULE,
    Event,
    Notified,
    Occurrence,
    notify_command,
    public_environment,
    store_notify,
)
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

ROWS = "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params\n"
KEYS = ["event", "study", "path", "state", "counts", "time", "message", "next"]


@pytest.fixture
def plan(tmp_path):
    """A study that has finished."""
    plan = StudyPlan(root=tmp_path / "study", timestamp="t", settings=SETTINGS, specification=tmp_path / "sweep.yaml")
    plan.info.mkdir(parents=True)
    (plan.root / "batch.info").write_text(json.dumps(plan.to_batch()))
    (plan.root / "status.csv").write_text(f"{ROWS}post,1,,FINISHED,--:--:--,--:--:--,--,--,--,0,\n")
    Session.create(plan.session).conductors.write(1)
    return plan


def log_of(plan):
    path = plan.info / "notify.log"
    return path.read_text() if path.exists() else ""


# --- the command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo a 'b c'", ["echo", "a", "b c"]),
        ("/bin/echo a", ["/bin/echo", "a"]),
        ('echo "$A"', None),
        ("echo a | cat", None),
        ("A=1 env", None),
        ("cd /tmp", None),
        ("echo 'open", None),
    ],
)
def test_a_shell_runs_only_what_needs_one(command, words):
    assert words_of(command) == (words or ["/bin/sh", "-c", command])


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("echo a", ""),
        ("A=1 B=2 echo $A | cat", ""),
        ("cd /tmp && echo", ""),
        ("if true; then echo; fi", ""),
        ("(echo)", ""),
        ('"$HOME"/notify', ""),
        ("~/notify", ""),
        ("no_such_program a", "found 'no_such_program', which is not a program on this machine"),
        ("A=1 no_such_program | cat", "found 'no_such_program', which is not a program on this machine"),
        ("/no/such/program", "found '/no/such/program', which is not a program on this machine"),
        (
            "./notify.sh",
            "found the program './notify.sh', a relative path; the command runs in the directory of the study",
        ),
        ("if true", "which /bin/sh cannot read"),
    ],
)
def test_a_command_that_cannot_run_is_found_before_the_launch(command, problem):
    """Given a command, then what only the shell can tell at its start is not checked."""
    found = notify_problem(command)
    assert problem in found
    assert bool(found) == bool(problem)


def test_a_shell_that_does_not_answer_says_nothing_about_the_command(monkeypatch):
    monkeypatch.setattr(notify_command_module, "_LIMIT_S", 0.0)
    assert notify_problem("no-such-program") == ""


@pytest.mark.parametrize(
    ("option", "specification", "configuration", "command"),
    [
        (None, None, None, ""),
        (None, None, "c", "c"),
        (None, "s", "c", "s"),
        ("o", "s", "c", "o"),
        ("", "s", "c", ""),
    ],
)
def test_the_option_has_priority_over_the_specification_and_this_over_the_configuration(
    plan, option, specification, configuration, command
):
    store_notify(plan, option=option, configuration=configuration)
    plan = StudyPlan.from_batch(
        {**plan.to_batch(), "settings": {**plan.to_batch()["settings"], "notify": specification}}
    )
    assert notify_command(plan) == command
    for path in plan.session.glob("notify/*"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_command_of_a_specification_may_name_its_places(plan):
    settings = replace(plan.settings, notify="$(SPECROOT)/n $(OUTPUT_PATH) $(date)")
    plan = StudyPlan.from_batch(
        {
            **plan.to_batch(),
            "settings": json.loads(json.dumps({"notify": settings.notify})) | plan.to_batch()["settings"],
        }
    )
    assert notify_command(plan) == f"{plan.root.parent}/n {plan.root} $(date)"


def test_a_command_has_no_secret_in_its_environment(plan):
    """Given variables of --env-file of the session and of the study, then the command has neither, nor the session."""
    Session(plan.session).write_environment({"TOKEN": "a"})
    Members(plan.session)._directory.mkdir()
    Members(plan.session).write_environment(plan.id, {"OTHER": "b"})
    names = ("TOKEN", "OTHER", "MAESTRO_CELERY_BROKER_URL", "MAESTRO_CELERY_SESSION", "MAESTRO_CELERY_WORKER")
    assert public_environment(plan, {"HOME": "/h", **dict.fromkeys(names, "x")}) == {"HOME": "/h"}


# --- the process that runs it ----------------------------------------------------------------------------


def notify(plan, command, *, event=Event.END, state="FINISHED", subject="", after=None, **changes):
    """Run the process for an event, as the conductor starts it."""
    occurrence = Occurrence(command=command, event=event, state=state, subject=subject, after=after)
    program = "; ".join(
        [
            "from maestro_celery_plugin.report import notifier",
            *(f"notifier.{k} = {v}" for k, v in changes.items()),
            "notifier.main()",
        ]
    )
    command_line = [sys.executable, "-c", program, str(plan.root)]
    with (plan.info / "notify.log").open("ab") as log:
        # Not in the current directory, which has the package from which the installed one was made.
        subprocess.run(command_line, input=occurrence.to_json().encode(), stdout=log, stderr=log, cwd="/", check=True)


def test_a_command_receives_what_has_happened(plan):
    notify(plan, 'cat > received; echo "$MAESTRO_CELERY_EVENT $MAESTRO_CELERY_STATE $MAESTRO_CELERY_STUDY"; pwd')

    received = json.loads((plan.root / "received").read_text())
    assert list(received) == KEYS
    assert received.pop("time")[10:11] == "T"
    assert received == {
        "event": "end",
        "study": "study",
        "path": str(plan.root),
        "state": "FINISHED",
        "counts": {
            "steps": {"total": 1, "finished": 1},
            "samples": {"total": 0, "finished": 0, "failed": 0, "running": 0, "pending": 0},
        },
        "message": "The study has finished.",
        "next": f"maestro-celery status {plan.root}",
    }
    assert log_of(plan).splitlines()[1:] == [f"end FINISHED {plan.root}", str(plan.root)]
    assert log_of(plan).splitlines()[0].endswith(" end: The study has finished.")


@pytest.mark.parametrize(
    ("event", "state", "subject", "message", "command"),
    [
        (Event.END, "FAILED", "", "The study has failed.", "explain"),
        (Event.END, "CANCELLED", "", "The study was cancelled.", "resume"),
        (
            Event.END,
            "INTERRUPTED",
            "",
            "The study was interrupted: its conductor has ended before its steps.",
            "resume",
        ),
        (Event.FAILURE, "RUNNING", "post", "The step record 'post' has failed.", "explain"),
        (Event.REALLOCATION, "RUNNING", "w/2", "Allocation 'w/2' is submitted.", "status"),
    ],
)
def test_each_event_has_a_sentence_and_a_next_command(plan, event, state, subject, message, command):
    found = notification_of(plan.root, Occurrence(command="", event=event, state=state, subject=subject))
    assert (found.message, found.next) == (message, f"maestro-celery {command} {plan.root}")


def test_a_command_that_does_not_end_is_killed_with_its_children(plan):
    marker = f"{plan.root}/marker"
    notify(plan, f"trap '' TERM; echo begin; sh -c 'sleep 1000; : {marker}' & wait; wait", LIMIT_S=3.0, _GRACE_S=0.2)
    assert "begin" in log_of(plan)
    assert log_of(plan).endswith(" end: the command has failed: it took longer than 3 s and was killed.\n")
    wait_for(lambda: not processes_of(marker), "the end of the command")


def test_the_output_of_a_command_has_a_limit(plan):
    """Given a command that prints without an end, then it does not fill the disk, and its exit code is logged."""
    notify(plan, "yes | head -c 3000000; exit 3", OUTPUT_LIMIT=1000)
    assert 1000 < len(log_of(plan)) < 1300
    assert log_of(plan).endswith(" end: the command has failed: exit code 3.\n")


def test_a_command_need_not_read_and_may_leave_a_process(plan):
    """Given a process in the background that keeps the output open, then nobody waits for it."""
    notify(plan, "sleep 300 & echo $! > pid", _GRACE_S=0.2)
    left = int((plan.root / "pid").read_text())
    assert ProcessId.of(left).is_alive
    os.kill(left, 9)
    assert "failed" not in log_of(plan)


def test_the_command_of_an_event_waits_for_that_of_the_event_before(plan):
    before = subprocess.Popen(["sh", "-c", f"sleep 0.5; echo first >> {plan.root}/order"])
    with before:
        process = ProcessId.of(before.pid)
        notify(plan, f"echo second >> {plan.root}/order", after=process)
    assert (plan.root / "order").read_text() == "first\nsecond\n"


def test_a_program_that_is_gone_is_in_the_log(plan):
    notify(plan, "no_such_program")
    assert "no_such_program: not found" in log_of(plan)
    assert log_of(plan).endswith("the command has failed: exit code 127.\n")


def test_a_study_that_cannot_be_read_is_in_the_log(plan):
    (plan.root / "batch.info").unlink()
    notify(plan, "touch ran")
    assert "end: the command has not run: " in log_of(plan)
    assert not (plan.root / "ran").exists()


# --- the events in the conductor -----------------------------------------------------------------------


class Seen(Notifications):
    """Notifications that store the events instead of starting a process."""

    def __init__(self, plan):
        self.events = []
        super().__init__(plan)

    def _start(self, event, state, subject=""):
        self.events.append((event.value, state.name, subject))


def coordinator(failed=(), allocations=()):
    return SimpleNamespace(
        watchers=[], failed_records=lambda: iter(failed), further_allocations=lambda: list(allocations)
    )


def test_an_event_is_notified_once_also_after_a_restart_of_the_conductor(plan):
    store_notify(plan, option="true", configuration=None)
    study = coordinator(failed=["sim"], allocations=["w/2"])
    first = Seen(plan)
    first.watch(study)
    first.watch(study)
    assert len(study.watchers) == 1
    for _ in range(2):
        study.watchers[0]()
    first.note_failed(["post"])
    assert first.events == [("failure", "RUNNING", "sim"), ("reallocation", "RUNNING", "w/2")]

    second = Seen(plan)
    second.look(coordinator(failed=["sim"], allocations=["w/2", "w/3"]))
    assert second.events == [("reallocation", "RUNNING", "w/3")]

    Notified(plan).forget(Event.FAILURE)  # `resume --failed`
    third = Seen(plan)
    third.note_failed([])
    third.note_failed(["post"])
    assert third.events == [("failure", "RUNNING", "post")]


def test_an_event_that_cannot_be_stored_has_no_command(plan, monkeypatch, caplog):
    """Given a full disk, then no command starts, because it could start again after a restart of the conductor."""
    store_notify(plan, option="true", configuration=None)
    seen = Seen(plan)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("maestro_celery_plugin.study.notifications.write_atomically", fail)
    seen.note_failed(["sim"])
    seen.note_failed(["sim"])
    assert seen.events == []
    assert caplog.messages == ["The notify command has not run for the event 'failure': disk full"]


def test_a_study_without_a_command_is_not_watched(plan):
    study, seen = coordinator(failed=["sim"]), Seen(plan)
    seen.watch(study)
    seen.note_failed(["sim"])
    seen.end()
    assert (study.watchers, seen.events) == ([], [])
    assert not (plan.info / "notified.json").exists()


def test_a_second_conductor_that_gives_up_does_not_notify_of_the_end(plan, monkeypatch):
    store_notify(plan, option="true", configuration=None)
    monkeypatch.setattr(notification, "_is_in_allocation", lambda: False)
    seen = Seen(plan)
    with FileLock(plan.conductor_lock):
        seen.end()
    assert seen.events == []
    seen.end()
    second = Seen(plan)
    second.end()  # a resume that had nothing to run
    assert (seen.events, second.events) == ([("end", "FINISHED", "")], [])
    Notified(plan).forget(Event.END)  # a resume that runs something
    third = Seen(plan)
    third.end()
    assert third.events == [("end", "FINISHED", "")]


def test_damaged_commands_are_a_warning(plan, caplog):
    (plan.session / "notify").mkdir()
    (plan.session / "notify" / f"{plan.id}.json").write_text("[]")
    seen = Seen(plan)
    seen.note_failed(["sim"])
    assert caplog.messages[0].startswith("There will be no notifications: ")


@pytest.mark.parametrize("is_in_allocation", [False, True])
def test_the_end_of_the_conductor_waits_for_the_command_only_inside_an_allocation(plan, monkeypatch, is_in_allocation):
    """Given a command that waits for a file, then the end does not wait, unless a batch system would kill the command."""
    command = "touch began; while [ ! -e go ]; do sleep 0.05; done; touch ended"
    store_notify(plan, option=command, configuration=None)
    monkeypatch.setattr(notification, "_is_in_allocation", lambda: is_in_allocation)
    own = Notifications(plan)
    if is_in_allocation:
        (plan.root / "go").touch()
    own.end()
    assert (plan.root / "ended").exists() == is_in_allocation
    (plan.root / "go").touch()
    assert own._processes[-1].wait(PATIENCE_S) == 0
    assert (plan.root / "ended").exists()
    assert notifier.__name__ == NOTIFIER_MODULE
