"""Brokers by URL for tests: a Redis and a RabbitMQ server, each started once and ended after the last test."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection
from support import needed, wait_for

from maestro_celery_plugin.processes import end_marked

__all__ = ["PASSWORD", "Server", "free_port", "rabbitmq_server", "redis_on", "redis_server"]

PASSWORD = "s3cret-of-the-test"


@dataclasses.dataclass
class Server:
    url: str
    wrong_url: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            return True
    except Exception:  # each transport raises its own errors until the server has started
        return False


@contextlib.contextmanager
def redis_on(port: int, directory: Path) -> Iterator[str]:
    """Run a Redis server on a port; yield its URL. Its data is lost at its end."""
    configuration = directory / "redis.conf"
    configuration.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {PASSWORD}\nsave ""\ndir {directory}\n')
    process = subprocess.Popen([needed("redis-server"), str(configuration)], stdout=subprocess.DEVNULL)
    url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    try:
        wait_for(lambda: answers(url), "redis-server", 20)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[Server]:
    port = free_port()
    with redis_on(port, tmp_path_factory.mktemp("redis")) as url:
        yield Server(url, url.replace(PASSWORD, "wrong"))


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[Server]:
    command = needed("rabbitmq-server", "/usr/lib/rabbitmq/bin")
    port, distribution, epmd = free_port(), free_port(), free_port()
    # Outside of pytest's directory: the server has a user of its own, and each start of pytest takes the permissions of
    # other users away from that directory.
    directory = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
    configuration = directory / "rabbitmq.conf"
    configuration.write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\ndefault_user = tester\ndefault_pass = {PASSWORD}\nlog.console = false\n"
    )
    directory.chmod(0o777)
    environment = {
        **os.environ,
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(epmd),  # the name server of Erlang ends with its server, and may not be shared
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_CONFIG_FILE": str(configuration.with_suffix("")),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with (directory / "out").open("w") as output:
        process = subprocess.Popen(
            [command], env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"amqp://tester:{PASSWORD}@127.0.0.1:{port}//"
    wait_for(lambda: answers(url) or process.poll() is not None, "rabbitmq-server", 90)
    assert process.poll() is None, (directory / "out").read_text()
    yield Server(url, url.replace(PASSWORD, "wrong"))
    end_marked("RABBITMQ_NODENAME", environment["RABBITMQ_NODENAME"])  # it has its own process group
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(directory, ignore_errors=True)
