"""The session: the data that a conductor and its workers share, in one directory that only its owner can read.

    session/                 0700
      secret                 0600  key of the message signatures
      broker.json            0600  location of the broker
      notify/<id>.json       0600  commands of notifications (`notifications.py`)
      environment.json       0600  variables of `maestro run --env-file` and functions of the shell, if there are any
      stop                         exists when the workers must end
      closed                       exists when no further study may join the session
      conductors/<id>.json         heartbeat of the conductor of a study (`conductor_beats.py`)
      studies/<id>.json            a study of the session (`members.py`)
      host.json                    the process that keeps the session (`host/`)
      host.log                     log of the host
      private_broker               exists when the session needs a private broker
      broker_host                  address on which the private broker listens
      broker.conf                  configuration of the private broker
      groups/<group>.json          configuration of a worker group (`config/groups.py`)
      groups/<group>.start         the last start of a local worker of the group (`worker_start.py`)
      workers/<name>.json          heartbeat of a worker (`heartbeats.py`)
      workers/<name>.stop          exists when this worker must end
      workers/<name>.leave         exists when this worker must leave after its running samples
      workers_stopped              worker groups whose workers are stopped (`stopped_workers.py`)
      workers/<name>.acquitted     exists when a held worker may continue

A worker receives the path of this directory only; it reads the secrets from the files and does not pass them on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.stored import Environment
from maestro_celery_plugin.errors import DamagedFileError, StudyError
from maestro_celery_plugin.files import read_json, read_text, revoke, write_atomically
from maestro_celery_plugin.study.broker_location import BrokerLocation
from maestro_celery_plugin.study.conductor_beats import ConductorBeats
from maestro_celery_plugin.study.heartbeats import Heartbeats

__all__ = ["AGAIN_VARIABLE", "ENVIRONMENT_VARIABLE", "SESSION_VARIABLE", "STUDY_VARIABLE", "BrokerLocation", "Session"]

# The URL of the broker for studies that this user launches, with a password: no process keeps it in its environment.
ENVIRONMENT_VARIABLE = "MAESTRO_CELERY_BROKER_URL"

# What samples and steps know of their session and study, so that a study that they start joins it.
SESSION_VARIABLE, STUDY_VARIABLE = "MAESTRO_CELERY_SESSION", "MAESTRO_CELERY_STUDY"
# Set in an attempt that is not the first one of its sample: it does not start a study again that it has started before.
AGAIN_VARIABLE = "MAESTRO_CELERY_AGAIN"

# How the names of variables begin in which bash exports its functions.
_FUNCTION = "BASH_FUNC_"
# Bytes of the secret, which is stored as hexadecimal text.
_SECRET_BYTES = 32
_SECRET = re.compile(rf"[0-9a-f]{{{2 * _SECRET_BYTES}}}")
# Bytes of the name of a task queue that remain in the name of its queue.
_QUEUE_BYTES = 200


class Session:
    """The session in a directory.

    Attributes:
        path: The directory.
        heartbeats: The heartbeats of the workers.
        conductors: The heartbeats of the conductors.
        claimed_names: Names of the workers that this process has started (`worker_identity.claim_name`), in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.claimed_names: list[str] = []
        self.heartbeats = Heartbeats(path)
        self.conductors = ConductorBeats(path)

    @classmethod
    def create(cls, path: Path) -> Session:
        """Create the directory and the secret."""
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        session = cls(path)
        session.renew_secret()
        (path / "workers").mkdir(exist_ok=True)
        return session

    def renew_secret(self) -> None:
        """Store another secret; messages that were signed with the one before are refused."""
        self._write("secret", secrets.token_hex(_SECRET_BYTES))

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text, mode=0o600)

    @property
    def secret(self) -> bytes:
        """The key of the message signatures.

        Raises:
            StudyError: the key cannot be read, or is damaged; an empty key would accept messages of any process.
        """
        path = self.path / "secret"
        try:
            text = read_text(path)
        except OSError as cause:
            if isinstance(cause, FileNotFoundError) and self.path.is_dir():
                raise DamagedFileError.at(path, "it does not exist") from cause
            raise StudyError(f"The session '{self.path}' cannot be read: {cause.strerror}.") from cause
        if not _SECRET.fullmatch(text):
            raise DamagedFileError.at(path, f"it must have {2 * _SECRET_BYTES} hexadecimal digits")
        return text.encode()

    @property
    def id(self) -> str:
        """A short public name of the session, derived from its secret."""
        return "mcp-" + hashlib.sha256(b"id" + self.secret).hexdigest()[:12]

    def queue(self, task_queue: str) -> str:
        """Return the name of Celery's queue for a task queue of this session.

        It has no character that a shell interprets, and at most 255 bytes, as RabbitMQ requires.
        """
        plain = re.sub(r"[^\w.-]", "_", task_queue, flags=re.ASCII)[:_QUEUE_BYTES]
        if plain != task_queue:  # two task queues must not become one
            plain = f"{plain}-{hashlib.sha256(task_queue.encode()).hexdigest()[:12]}"
        return f"{self.id}.{plain}"

    # --- broker ---

    def write_broker(self, location: BrokerLocation) -> None:
        """Store the location of the broker, with its password."""
        self._write("broker.json", conversion.to_json(location))

    def read_broker(self) -> BrokerLocation | None:
        """Return the location of the broker; None without a broker, or if a crash has emptied the file."""
        try:
            values = read_json(self.path / "broker.json")
            if isinstance(values, dict):  # release 0.1.0 calls the supervisor `keeper`
                values = {"supervisor": values.get("keeper"), **values}
            return conversion.from_dict(BrokerLocation, values)
        except (FileNotFoundError, ValueError):
            return None

    def remove_broker(self) -> None:
        """Remove the location of a private broker that has ended, and its configuration."""
        for name in ("broker.json", "broker.conf"):
            (self.path / name).unlink(missing_ok=True)

    def want_private_broker(self) -> None:
        """Ask the host of the session for a private broker."""
        (self.path / "private_broker").touch()

    @property
    def wants_private_broker(self) -> bool:
        """Whether the session needs a private broker."""
        broker = self.read_broker()
        if broker is not None:
            return broker.supervisor is not None
        return (self.path / "private_broker").exists()

    @property
    def broker_host(self) -> str:
        """The address on which the private broker listens."""
        try:
            return read_text(self.path / "broker_host").strip() or "127.0.0.1"
        except FileNotFoundError:
            return "127.0.0.1"

    def write_broker_host(self, host: str) -> None:
        """Store the address on which the private broker must listen."""
        self._write("broker_host", host)

    # --- environment ---

    def write_environment(self, variables: Mapping[str, str]) -> None:
        """Store the variables of `maestro run --env-file`, which may have secrets, and functions such as `module`.

        Maestro submits batch jobs with `/bin/sh`, and some shells do not pass on the functions of other shells.
        """
        functions = {name: value for name, value in os.environ.items() if name.startswith(_FUNCTION)}
        if variables or functions:
            self._write("environment.json", json.dumps({**functions, **variables}))

    def apply_environment(self) -> dict[str, str]:
        """Set in this process what `write_environment` has stored, and return it; its own functions stay.

        Raises:
            StudyError: they cannot be read, or are damaged.
        """
        variables = self._read_environment()
        os.environ.update({n: v for n, v in variables.items() if not (n.startswith(_FUNCTION) and n in os.environ)})
        return variables

    def secret_values(self) -> list[str]:
        """Return the values of `maestro run --env-file`, which nothing that users pass on may contain.

        Raises:
            StudyError: they cannot be read, or are damaged.
        """
        return [value for name, value in self._read_environment().items() if not name.startswith(_FUNCTION)]

    def secret_names(self) -> set[str]:
        """Return the names of the variables of `maestro run --env-file`.

        Raises:
            StudyError: they cannot be read, or are damaged.
        """
        return {name for name in self._read_environment() if not name.startswith(_FUNCTION)}

    def _read_environment(self) -> dict[str, str]:
        path = self.path / "environment.json"
        if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises an error without permission)
            return {}
        try:
            return conversion.from_dict(Environment, read_json(path))
        except OSError as cause:
            raise StudyError(f"'{path}' cannot be read: {cause.strerror}.") from cause
        except ValueError as cause:
            raise DamagedFileError.at(path, "it must have the variables of --env-file as JSON") from cause

    # --- worker groups ---

    def _group_path(self, name: str) -> Path:
        return self.path / "groups" / f"{name}.json"

    def write_group(self, group: GroupConfig) -> None:
        """Store the configuration of a worker group."""
        path = self._group_path(group.group)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, conversion.to_json(group))

    def has_group(self, name: str) -> bool:
        """Tell whether the configuration of a worker group is stored."""
        return os.path.exists(self._group_path(name))  # noqa: PTH110 (Path.exists raises an error without permission)

    def read_group(self, name: str) -> GroupConfig:
        """Return the configuration of a worker group.

        Raises:
            StudyError: the session has no such group, or has ended.
        """
        try:
            return conversion.from_json(GroupConfig, read_text(self._group_path(name)))
        except (OSError, ValueError) as cause:
            path = self._group_path(name)
            if isinstance(cause, PermissionError):
                raise StudyError(f"'{path}' cannot be read: only the user who has launched the study may.") from cause
            if isinstance(cause, OSError):
                raise StudyError(
                    f"'{path}' cannot be read ({cause.strerror}): the study has ended, it has no group '{name}', or "
                    "its file system is not mounted on this machine."
                ) from cause
            raise StudyError(
                f"'{path}' is damaged, or was written by another version of maestro-celery-plugin; start the worker "
                f"with the version of the conductor ({cause})."
            ) from cause

    # --- requests to stop ---

    def request_stop(self) -> None:
        """Request the end of the workers and of the session's host."""
        (self.path / "stop").touch()

    def revoke_stop(self) -> None:
        """Revoke `request_stop` and `close`, when a study is resumed."""
        for name in ("stop", "closed"):
            revoke(self.path / name)

    def close(self) -> None:
        """Let no further study join the session."""
        (self.path / "closed").touch()

    @property
    def is_closed(self) -> bool:
        """Whether no further study may join the session: it is being stopped, or its last study has ended."""
        return self.stop_requested or (self.path / "closed").exists()

    @property
    def stop_requested(self) -> bool:
        """Whether all workers must end."""
        return (self.path / "stop").exists()

    def request_worker_stop(self, name: str) -> None:
        """Request the end of one worker."""
        (self.path / "workers" / f"{name}.stop").touch()

    def request_worker_leave(self, name: str) -> None:
        """Request one worker to leave when its running samples have ended."""
        (self.path / "workers" / f"{name}.leave").touch()

    def worker_leave_requested(self, name: str) -> bool:
        """Tell whether this worker must leave when its running samples have ended."""
        return (self.path / "workers" / f"{name}.leave").exists()

    def revoke_leave(self) -> None:
        """Revoke all requests to leave; a worker that has not left yet continues."""
        for path in (self.path / "workers").glob("*.leave"):
            path.unlink(missing_ok=True)

    def worker_stop_requested(self, name: str) -> bool:
        """Tell whether this worker must end."""
        return self.stop_requested or (self.path / "workers" / f"{name}.stop").exists()
