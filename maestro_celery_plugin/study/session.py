"""The session: what a conductor and its workers share, in one directory that only its owner can read.

    session/                 0700
      secret                 0600  key of the message signatures
      broker.json            0600  where the broker is
      stop                         present when the workers shall end
      conductor.json               heartbeat of the conductor, and the allocations that work
      broker_host                  address on which the private broker listens
      groups/<group>.json          what the workers of a group work by (`worker_terms.py`)
      workers/<name>.json          heartbeat of each worker

Its path is all that a worker is given; secrets are read from its files and go nowhere else.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import hmac
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.study.manifest import write_atomically

__all__ = ["Heartbeat", "Session"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a worker says of itself every two seconds.

    Attributes:
        name: The worker's name, unique in the session.
        group: Its worker group.
        host: The machine it runs on, by its own name.
        node: The same by the name that the batch system has for it.
        supervisor: (pid, start time) of the process that watches over it.
        process: (pid, start time) of the worker process; (0, 0) before it has started.
        slots: How many samples it runs at a time.
        beat: Counts up; a heartbeat that no longer changes is that of a dead worker.
        state: `starting`, `idle`, `busy`, `draining` or `stopping`.
        allocation: Its allocation, such as ``sim/2``; empty for a worker that runs in none of ours.
        ends_at: When that ends (Unix seconds of the worker's machine); None when it does not.
        refuses: Numbers of step records whose samples it does not start any more, for lack of time.
    """

    name: str
    group: str
    host: str
    node: str
    supervisor: tuple[int, int]
    process: tuple[int, int]
    slots: int
    beat: int
    state: str
    allocation: str = ""
    ends_at: float | None = None
    refuses: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Heartbeat:
        """Read it from what JSON has made of it."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


class Session:
    """A session by its directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Session:
        """Make the directory and the secret."""
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        session = cls(path)
        session._write("secret", secrets.token_hex(32))
        (path / "workers").mkdir(exist_ok=True)
        return session

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text, mode=0o600)

    @property
    def _secret(self) -> bytes:
        try:
            return (self.path / "secret").read_bytes()
        except OSError as cause:
            raise StudyError(f"The session '{self.path}' cannot be read: {cause.strerror}.") from cause

    @property
    def id(self) -> str:
        """A short public name of the session, derived from its secret; prefixes its queues."""
        return "mcp-" + hashlib.sha256(b"id" + self._secret).hexdigest()[:12]

    def queue(self, task_queue: str) -> str:
        """Return Celery's queue for a task queue of this session."""
        return f"{self.id}.{task_queue}"

    def signer(self) -> Signer:
        """Return what signs and checks this session's messages."""
        return Signer(self._secret)

    # --- broker ---

    def write_broker(self, values: dict[str, Any]) -> None:
        """Store where the broker is, with its password."""
        self._write("broker.json", json.dumps(values))

    def read_broker(self) -> dict[str, Any] | None:
        """Return where the broker is, or None while there is none."""
        return _read_json(self.path / "broker.json")

    @property
    def broker_host(self) -> str:
        """The address on which the private broker listens."""
        path = self.path / "broker_host"
        return path.read_text().strip() if path.exists() else "127.0.0.1"

    def write_broker_host(self, host: str) -> None:
        """Store the address on which the private broker shall listen."""
        self._write("broker_host", host)

    # --- workers ---

    def worker_log(self, name: str) -> Path:
        """Return where a worker's output goes: beside the session, for everybody to read."""
        return self.path.parent / "workers" / f"{name}.log"

    def last_words(self, stems: tuple[str, ...], size: int = 1500) -> str:
        """Return the end of the log of a worker whose name begins with one of `stems`; empty when none has one."""
        logs = sorted(log for log in self.worker_log("any").parent.glob("*.log") if log.name.startswith(stems))
        texts = (log.read_text(errors="replace").strip()[-size:] for log in logs)
        return next(filter(None, texts), "")

    def claim_worker_name(self, stem: str) -> str:
        """Return a name that no worker of this session has or had, and make its log; safe on several nodes at once.

        Whoever creates the log has the name (open(2), O_EXCL).
        """
        for number in itertools.count(1):
            name = f"{stem}-{number}"
            log = self.worker_log(name)
            log.parent.mkdir(parents=True, exist_ok=True)
            try:
                log.touch(exist_ok=False)
            except FileExistsError:
                continue
            return name
        raise AssertionError("counting has no end")

    # --- life ---

    def request_stop(self) -> None:
        """Tell the workers and the broker's keeper to end."""
        (self.path / "stop").touch()

    def revoke_stop(self) -> None:
        """Take `request_stop` back, when a study is resumed."""
        (self.path / "stop").unlink(missing_ok=True)

    @property
    def stop_requested(self) -> bool:
        """Whether the workers shall end."""
        return (self.path / "stop").exists()

    def request_worker_stop(self, name: str) -> None:
        """Tell one worker to end."""
        (self.path / "workers" / f"{name}.stop").touch()

    def worker_stop_requested(self, name: str) -> bool:
        """Whether this worker shall end."""
        return self.stop_requested or (self.path / "workers" / f"{name}.stop").exists()

    def write_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Store a worker's heartbeat."""
        self._write(f"workers/{heartbeat.name}.json", json.dumps(dataclasses.asdict(heartbeat)))

    def remove_heartbeat(self, name: str) -> None:
        """Forget a worker that has ended or died."""
        for suffix in ("json", "stop"):
            (self.path / "workers" / f"{name}.{suffix}").unlink(missing_ok=True)

    def heartbeats(self, prefix: str = "") -> list[Heartbeat]:
        """Return the heartbeats of all workers that have not been forgotten, and whose name begins with `prefix`."""
        paths = sorted(p for p in (self.path / "workers").glob("*.json") if p.stem.startswith(prefix))
        values = [_read_json(path) for path in paths]
        return [Heartbeat.from_dict(value) for value in values if value]

    def write_conductor_beat(self, beat: int, working: Iterable[str] | None = None) -> None:
        """Store the conductor's heartbeat, and the allocations of which a worker works; None when it does not know."""
        words = None if working is None else sorted(working)
        self._write("conductor.json", json.dumps({"beat": beat, "working": words, "pid": os.getpid()}))

    def read_conductor_beat(self) -> tuple[int, tuple[str, ...] | None]:
        """Return the conductor's heartbeat, which changes while it lives, and the allocations that it sees work."""
        values = _read_json(self.path / "conductor.json") or {}
        working = values.get("working")
        return int(values.get("beat", 0)), None if working is None else tuple(working)


class Signer:
    """Signs messages with the session's secret (HMAC-SHA256 over canonical JSON)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, *values: str | int) -> str:
        """Return the signature of a message."""
        return hmac.new(self._secret, json.dumps(values).encode(), hashlib.sha256).hexdigest()

    def fits(self, signature: object, *values: str | int) -> bool:
        """Tell whether a signature is that of the message."""
        return isinstance(signature, str) and hmac.compare_digest(
            signature.encode(errors="replace"), self.sign(*values).encode()
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return what is in a file; None when it is not there, or empty since its machine has crashed."""
    try:
        return json.loads(_read_text(path))  # type: ignore[no-any-return]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _read_text(path: Path, attempts: int = 5) -> str:
    """Read a file that another node may replace meanwhile: NFS then says that it is stale (open(2), nfs(5))."""
    try:
        return path.read_text()
    except OSError as error:
        if error.errno != errno.ESTALE or attempts == 1:
            raise
        return _read_text(path, attempts - 1)
