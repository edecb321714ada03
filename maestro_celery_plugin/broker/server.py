"""The server of a private broker: a Valkey or Redis process that its owner starts, restarts after a crash, and ends.

The owner is the host of a session (`host/`). A server that does not answer for `HUNG_LIMIT_S` seconds counts as dead.
"""

from __future__ import annotations

import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import redis
from kombu.utils.url import as_url, url_to_parts
from redis.backoff import NoBackoff
from redis.retry import Retry

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.access import ADMIN, USER, acl_lines
from maestro_celery_plugin.broker.private import START_TIMEOUT_S, find_server
from maestro_celery_plugin.files import write_atomically
from maestro_celery_plugin.machine import machine_id
from maestro_celery_plugin.processes import ProcessId, die_with_parent
from maestro_celery_plugin.study.session import BrokerLocation, Session

__all__ = ["PrivateServer"]

HUNG_LIMIT_S = 10.0
SAME_PORT_TRIES = 3
START_TRIES = 20
# Shorter than the time that the conductor waits for the broker.
SERVER_START_LIMIT_S = START_TIMEOUT_S - 15.0
STOP_LIMIT_S = 3.0
_LOOK_INTERVAL_S = 1.0
_ANSWER_LIMIT_S = 2.0


class PrivateServer:
    """The server of the private broker of a session.

    Args:
        session: The session of the broker.

    Attributes:
        clients: Number of clients when they were last counted.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._host = session, session.broker_host
        broker = session.read_broker()
        earlier = url_to_parts(broker.url if broker else "")
        # Workers that outlived an earlier owner find the broker at the same address. Those of release 0.1 have an
        # address without a user.
        self._user = (earlier.username or None) if earlier.password else USER
        self._password = earlier.password or secrets.token_hex(24)
        self._admin_password = secrets.token_hex(24)
        self._port = earlier.port or 0
        self._generation = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._identity = (os.getpid(), ProcessId.of(os.getpid()).start)
        self._answered_at = self._counted_at = float("-inf")
        self.clients = 0

    def keep(self) -> None:
        """Start the server if it has died; each second, count its clients, and kill it if it does not answer."""
        now = clock.monotonic()
        if self._has_died():
            self._start()
            self._answered_at = now = clock.monotonic()
        if self._ending or now - self._counted_at < _LOOK_INTERVAL_S:
            return
        self._counted_at = now
        clients = self._other_clients()
        if clients is not None:
            self._answered_at, self.clients = clock.monotonic(), clients
        elif now - self._answered_at > HUNG_LIMIT_S:
            self._kill(f"the server has not answered for {HUNG_LIMIT_S:.0f} s; it is started again")

    def count_again(self) -> int:
        """Count the clients now; return the last number if the server does not answer."""
        clients = self._other_clients()
        self.clients = self.clients if clients is None else clients
        return self.clients

    def request_end(self) -> None:
        """Let the server end; a signal handler may call this, and `stop` follows."""
        self._ending = True
        if self._server is not None:
            self._server.terminate()

    def _start(self) -> None:
        """Start the server, if possible on the same port as before, and store its location in the session."""
        deadline = clock.monotonic() + SERVER_START_LIMIT_S
        for attempt in range(START_TRIES):
            port = self._port
            if not port or attempt >= SAME_PORT_TRIES:
                # Another process may use the old port now, and clients may have sent it the old password.
                port, self._user, self._password = _free_port(self._host), USER, secrets.token_hex(24)
            self._server = self._server_on(port)
            is_over = functools.partial(self._answers_or_has_died, port)
            if not clock.wait_until(is_over, deadline - clock.monotonic()):
                raise SystemExit(f"the server has not answered within {SERVER_START_LIMIT_S:.0f} s of its start")
            if self._ending:
                return
            if not self._has_died():
                break
        else:
            raise SystemExit(f"the server has ended {START_TRIES} times after its start")
        self._port = port
        self._generation += 1
        self._session.write_broker(
            BrokerLocation(
                url=as_url("redis", self._host, port, self._user, self._password, "0"),
                supervisor=self._identity,
                generation=f"{machine_id()}.{os.getpid()}.{self._generation}",
                machine=machine_id(),
            )
        )

    def _server_on(self, port: int) -> subprocess.Popen[bytes]:
        """Start the server, which gets no path: it would expand the characters of a pattern in it."""
        with self._write_configuration(port).open("rb") as configuration:
            return subprocess.Popen(
                [str(Path(find_server()).absolute()), "-"],
                stdin=configuration,
                cwd=self._session.path,
                # SIGKILL: a server that hangs does not react to other signals, and has nothing to store.
                preexec_fn=functools.partial(die_with_parent, os.getpid(), signal.SIGKILL),
            )

    def _write_configuration(self, port: int) -> Path:
        path = self._session.path / "broker.conf"
        lines = [
            f"bind {self._host}",
            f"port {port}",
            *acl_lines(self._session.id, self._user, self._password, self._admin_password),
            "protected-mode yes",
            "daemonize no",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
        ]
        write_atomically(path, "\n".join(lines) + "\n", mode=0o600, durable=False)
        return path

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(
            host=self._host,
            port=port,
            username=ADMIN,
            password=self._admin_password,
            socket_timeout=_ANSWER_LIMIT_S,
            socket_connect_timeout=_ANSWER_LIMIT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def _answers(self, port: int) -> bool:
        try:
            with self._client(port) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _answers_or_has_died(self, port: int) -> bool:
        return self._ending or self._has_died() or self._answers(port)

    def _has_died(self) -> bool:
        return self._server is None or self._server.poll() is not None

    def _other_clients(self) -> int | None:
        """Return the number of clients except this process; None if the server does not answer."""
        try:
            with self._client(self._port) as client:
                return len(client.client_list()) - 1
        except redis.RedisError:
            return None

    def _kill(self, reason: str) -> None:
        print(f"broker of '{self._session.path}': {reason}", file=sys.stderr, flush=True)
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def stop(self) -> None:
        """End the server, and remove its location from the session."""
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            try:
                self._server.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._kill("the server has not ended by itself")
        broker = self._session.read_broker()
        # A conductor on another machine may have started another supervisor.
        if broker is not None and (broker.machine, broker.supervisor) == (machine_id(), self._identity):
            self._session.remove_broker()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
