"""The supervisor of a private broker: a process that starts the server, restarts it after a crash, and ends it.

    python -m maestro_celery_plugin.broker.supervisor SESSION

The supervisor ends when the session requests a stop and no client is connected, or when no client has been connected
for `IDLE_LIMIT_S` seconds. So the server ends even if the conductor was killed.
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
from pathlib import Path
from types import FrameType

import redis
from kombu.utils.url import as_url, url_to_parts

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.private import find_server
from maestro_celery_plugin.files import write_atomically
from maestro_celery_plugin.processes import ProcessId, die_with_parent, machine_id
from maestro_celery_plugin.study.session import BrokerLocation, Session

__all__ = ["main"]

IDLE_LIMIT_S = 30.0
SAME_PORT_TRIES = 3
_INTERVAL_S = 1.0


class Supervisor:
    """Runs a private Valkey server.

    Args:
        session: The session of the broker.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._host = session, session.broker_host
        broker = session.read_broker()
        earlier = url_to_parts(broker.url if broker else "")
        # Workers that outlived an earlier supervisor find the broker at the same address.
        self._password = earlier.password or secrets.token_hex(24)
        self._port = earlier.port or 0
        self._generation = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._identity = (os.getpid(), ProcessId.of(os.getpid()).start)

    def run(self) -> None:
        """Run the server until the session no longer needs it."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        idle_since = clock.monotonic()
        try:
            while not self._ending:
                if self._server is None or self._server.poll() is not None:
                    self._start()
                clients = self._other_clients()
                if clients:
                    idle_since = clock.monotonic()
                idle_s = clock.monotonic() - idle_since
                if not clients and (self._session.stop_requested or idle_s > IDLE_LIMIT_S):
                    break
                self._pause()
        finally:
            self._stop()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._ending = True

    def _pause(self) -> None:
        """Wait for `_INTERVAL_S` seconds, or until the server ends."""
        if self._server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_INTERVAL_S)

    def _start(self) -> None:
        """Start the server, if possible on the same port as before, and store its location in the session."""
        for attempt in range(20):
            port = self._port
            if not port or attempt >= SAME_PORT_TRIES:
                # Another process may use the old port now, and clients may have sent it the old password.
                port, self._password = _free_port(self._host), secrets.token_hex(24)
            self._server = subprocess.Popen(
                [find_server(), str(self._write_configuration(port))],
                stdin=subprocess.DEVNULL,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
            if clock.wait_until(functools.partial(self._answers_or_has_died, port), 10.0) and not self._has_died():
                break
            self._server.kill()
            self._server.wait()
        else:
            raise SystemExit("the server does not start")
        self._port = port
        self._generation += 1
        self._session.write_broker(
            BrokerLocation(
                url=as_url("redis", self._host, port, None, self._password, "0"),
                supervisor=self._identity,
                generation=f"{machine_id()}.{os.getpid()}.{self._generation}",
                machine=machine_id(),
            )
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
        write_atomically(path, "\n".join(lines) + "\n", mode=0o600, durable=False)
        return path

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(host=self._host, port=port, password=self._password, socket_timeout=2)

    def _answers(self, port: int) -> bool:
        try:
            return bool(self._client(port).ping())
        except redis.RedisError:
            return False

    def _answers_or_has_died(self, port: int) -> bool:
        return self._answers(port) or self._has_died()

    def _has_died(self) -> bool:
        return self._server is None or self._server.poll() is not None

    def _other_clients(self) -> int:
        """Return the number of clients except this process; 1 if the server is too busy to answer."""
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
        broker = self._session.read_broker()
        # A conductor on another machine may have started another supervisor.
        if broker is not None and (broker.machine, broker.supervisor) == (machine_id(), self._identity):
            self._session.remove_broker()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Run the private broker of the session that the command line names."""
    Supervisor(Session(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
