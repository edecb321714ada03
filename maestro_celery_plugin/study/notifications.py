"""The notifications of a study: the command that runs, and the events for which it has been started.

    session/notify/<id>.json    0600  the commands of `--notify` and of the user's configuration
    merlin_info/notified.json         the events for which the command has been started

The command may have a secret, such as the address of a service; that of a specification is as public as its file.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from pathlib import Path

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.stored import Word
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_json, write_atomically
from maestro_celery_plugin.processes import ProcessId
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import AGAIN_VARIABLE, ENVIRONMENT_VARIABLE, SESSION_VARIABLE, Session
from maestro_celery_plugin.study.worker_identity import MARKER, PROCESS_MARKER

__all__ = [
    "LOG",
    "NOTIFIER_MODULE",
    "Event",
    "Notified",
    "Occurrence",
    "notify_command",
    "public_environment",
    "store_notify",
]

# The module of the process that runs the command for one event, and its log in `merlin_info`.
NOTIFIER_MODULE = "maestro_celery_plugin.report.notifier"
LOG = "notify.log"


class Event(enum.Enum):
    """What a command is started for."""

    FAILURE = "failure"
    """The first sample or step has failed; once in a study, and again after `resume --failed` or `resume --step`."""
    REALLOCATION = "reallocation"
    """A further allocation was submitted, because an earlier one of the same name has ended; once for each."""
    END = "end"
    """The study has finished, has failed, was cancelled, or its conductor was interrupted; once for each of these, and
    again after a resume that has run something.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Occurrence:
    """What the conductor tells the process that runs the command.

    Attributes:
        command: The command.
        event: The event.
        state: Name of the state of the study at this time.
        subject: Name of the step record that has failed, or label of the allocation; empty at the end.
        after: The process for the event before, whose command must end first; None without one.
    """

    command: str
    event: Event
    state: str
    subject: str = ""
    after: ProcessId | None = None

    def to_json(self) -> str:
        """Return the text for the standard input of the process; the command line would show the command."""
        after = [self.after.pid, self.after.start] if self.after else None
        values = {"command": self.command, "state": self.state, "subject": self.subject, "after": after}
        return json.dumps({"event": self.event.value, **values})

    @classmethod
    def from_json(cls, text: str) -> Occurrence:
        """Return what `to_json` has written."""
        values = json.loads(text)
        event, after = Event(values.pop("event")), values.pop("after")
        return cls(event=event, after=ProcessId(*after) if after else None, **values)


def store_notify(plan: StudyPlan, *, option: str | None, configuration: str | None) -> None:
    """Store the commands of a launch that are not in the specification.

    Args:
        plan: The study.
        option: The value of `--notify`; empty for no notifications, None without the option.
        configuration: The command of the user's configuration.
    """
    if option is not None or configuration:
        path = _path(plan)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, json.dumps({"option": option, "configuration": configuration}), mode=0o600)


def _path(plan: StudyPlan) -> Path:
    return plan.session / "notify" / f"{plan.id}.json"


def notify_command(plan: StudyPlan) -> str:
    """Return the command of a study, or an empty text: of the option, else the specification, else the configuration.

    Raises:
        OSError: the stored commands cannot be read.
        DamagedFileError: they are damaged.
    """
    try:
        stored = conversion.from_dict(dict[str, Word | None], read_json(_path(plan)))
    except FileNotFoundError:
        stored = {}
    except ValueError as cause:
        raise DamagedFileError.at(_path(plan), "it must have the commands of notifications") from cause
    option = stored.get("option")
    if option is not None:
        return option
    if plan.settings.notify:
        root = str(plan.specification.parent) if plan.specification else ""
        values = {"OUTPUT_PATH": str(plan.root), "MERLIN_INFO": str(plan.info), "SPECROOT": root}
        return substitute(plan.settings.notify, values)
    return stored.get("configuration") or ""


def public_environment(plan: StudyPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: that of the conductor without `--env-file`, broker, session and worker.

    Raises:
        StudyError: the variables of `--env-file` cannot be read.
    """
    hidden = {ENVIRONMENT_VARIABLE, SESSION_VARIABLE, AGAIN_VARIABLE, MARKER, PROCESS_MARKER}
    hidden |= Session(plan.session).secret_names() | Members(plan.session).read_environment(plan.id).keys()
    return {name: value for name, value in environ.items() if name not in hidden}


class Notified:
    """The events for which the command has been started: their names, some with what they are about.

    Only the conductor, or a resume without one, uses it.

    Args:
        plan: The study.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._path = plan.info / "notified.json"
        try:
            self._keys = dict.fromkeys(map(str, read_json(self._path)))
        except (FileNotFoundError, DamagedFileError, TypeError):
            self._keys = {}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        """Store an event before its command starts, so that it is not started twice.

        Raises:
            OSError: it cannot be stored.
        """
        self._keys[key] = None
        write_atomically(self._path, json.dumps(list(self._keys)))

    def forget(self, *events: Event) -> None:
        """Let events be new ones when they occur again.

        Raises:
            OSError: this cannot be stored.
        """
        names = {event.value for event in events}
        kept = {key: None for key in self._keys if key.partition(" ")[0] not in names}
        if kept != self._keys:
            self._keys = kept
            write_atomically(self._path, json.dumps(list(self._keys)))
