"""The process that keeps the private broker: starts it, starts it again when it dies, and ends it.

    python -m maestro_celery_plugin.broker.supervisor SESSION

It ends when the session is told to stop and nobody is connected any more, or when nobody has been
connected for a while, so that nothing is left behind by a conductor that was killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import redis

from maestro_celery_plugin.broker.choice import find_server
from maestro_celery_plugin.processes import ProcessId, die_with_parent, wait_until
from maestro_celery_plugin.study.manifest import write_atomically
from maestro_celery_plugin.study.session import Session

__all__ = ["main"]

LONELY_LIMIT_S = 30.0
SAME_PORT_TRIES = 3
_INTERVAL_S = 1.0


class Keeper:
    """A private Valkey server with one owner.

    Args:
        session: The session it serves.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._host = session, session.broker_host
        earlier = urlsplit((session.read_broker() or {}).get("url", ""))
        # Workers that outlived an earlier keeper find the broker where it was.
        self._password = earlier.password or secrets.token_hex(24)
        self._port = earlier.port or 0
        self._generation = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._me = [os.getpid(), ProcessId.of(os.getpid()).start]

    def run(self) -> None:
        """Keep the server until it is not needed any more."""
        signal.signal(signal.SIGTERM, self._end)
        lonely_since = time.monotonic()
        try:
            while not self._ending:
                if self._server is None or self._server.poll() is not None:
                    self._start()
                others = self._other_clients()
                if others:
                    lonely_since = time.monotonic()
                lonely_s = time.monotonic() - lonely_since
                if not others and (self._session.stop_requested or lonely_s > LONELY_LIMIT_S):
                    break
                self._pause()
        finally:
            self._stop()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ending = True

    def _pause(self) -> None:
        """Wait a moment, but not longer than the server lives."""
        if self._server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_INTERVAL_S)

    def _start(self) -> None:
        """Start the server, on the same port as before when there was one, and tell the session."""
        for attempt in range(20):
            port = self._port
            if not port or attempt >= SAME_PORT_TRIES:
                # Whoever has the old port now may have been told the old password.
                port, self._password = _free_port(self._host), secrets.token_hex(24)
            self._server = subprocess.Popen(
                [find_server(), str(self._write_configuration(port))],
                stdin=subprocess.DEVNULL,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
            if wait_until(functools.partial(self._has_begun, port), 10.0) and not self._has_died():
                break
            self._server.kill()
            self._server.wait()
        else:
            raise SystemExit("the server does not start")
        self._port = port
        self._generation += 1
        self._session.write_broker(
            {
                "url": f"redis://:{self._password}@{self._host}:{port}/0",
                "keeper": self._me,
                "generation": f"{os.getpid()}.{self._generation}",
            }
        )

    def _write_configuration(self, port: int) -> Path:
        path = self._session.path / "broker.conf"
        lines = [
            f"bind {self._host}",
            f"port {port}",
            f"requirepass {self._password}",
            "protected-mode yes",
            "daemonize no",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            f"dir {self._session.path}",
        ]
        write_atomically(path, "\n".join(lines) + "\n", mode=0o600)
        return path

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(host=self._host, port=port, password=self._password, socket_timeout=2)

    def _answers(self, port: int) -> bool:
        try:
            return bool(self._client(port).ping())
        except redis.RedisError:
            return False

    def _has_begun(self, port: int) -> bool:
        return self._answers(port) or self._has_died()

    def _has_died(self) -> bool:
        return self._server is None or self._server.poll() is not None

    def _other_clients(self) -> int:
        """Return how many clients are connected besides this process; many when the server is too busy to tell."""
        try:
            with self._client(self._port) as client:
                return len(client.client_list()) - 1
        except redis.RedisError:
            return 1

    def _stop(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            try:
                self._server.wait(5)
            except subprocess.TimeoutExpired:
                self._server.kill()
        keeper = (self._session.read_broker() or {}).get("keeper")
        if keeper == self._me:  # and not one that a conductor on another machine has started meanwhile
            for name in ("broker.json", "broker.conf"):
                (self._session.path / name).unlink(missing_ok=True)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Keep the private broker of the session named on the command line."""
    Keeper(Session(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
