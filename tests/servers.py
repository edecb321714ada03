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
import yaml
from kombu import Connection
from support import needed, wait_for

from maestro_celery_plugin.processes import end_marked

__all__ = ["PASSWORD", "Server", "TlsServer", "free_port", "rabbitmq_server", "redis_on", "redis_server", "redis_tls_server"]

PASSWORD = "s3cret-of-the-test"


@dataclasses.dataclass
class TlsServer:
    """A server that speaks TLS, and wants a certificate of its clients.

    Attributes:
        name: The name of its kind in Merlin.
        port: Its port.
        files: Directory of ``ca.pem``, which has signed all certificates, ``client.pem`` and ``client.key``; ``other.pem``
            is another certificate authority.
    """

    name: str
    port: int
    files: Path

    def broker(self, **keys: object) -> str:
        """Return a broker block of Merlin for this server, with keys for TLS."""
        place = {"name": self.name, "server": "127.0.0.1", "port": self.port}
        user = {"username": "tester", "vhost": "/"} if self.name == "rabbitmq" else {}
        certificate = {"certfile": f"{self.files}/client.pem", "keyfile": f"{self.files}/client.key"}
        return yaml.safe_dump({"broker": {**place, **user, "password": PASSWORD, **certificate, **keys}})


@dataclasses.dataclass
class Server:
    url: str
    wrong_url: str
    tls: TlsServer | None = None


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


def _make_certificates(directory: Path) -> None:
    def openssl(*words: str) -> None:
        subprocess.run([needed("openssl"), *words], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for authority in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)


@pytest.fixture(scope="session")
def redis_tls_server(tmp_path_factory) -> Iterator[TlsServer]:
    directory, port = tmp_path_factory.mktemp("tls"), free_port()
    _make_certificates(directory)
    (directory / "redis.conf").write_text(
        f'bind 127.0.0.1\nport 0\ntls-port {port}\nrequirepass {PASSWORD}\nsave ""\ndir {directory}\n'
        "tls-cert-file server.pem\ntls-key-file server.key\ntls-ca-cert-file ca.pem\n"
    )
    process = subprocess.Popen([needed("redis-server"), "redis.conf"], cwd=directory, stdout=subprocess.DEVNULL)
    files = {"ca_certs": "ca.pem", "certfile": "client.pem", "keyfile": "client.key"}
    options = "&".join(f"ssl_{key}={directory / name}" for key, name in files.items())
    url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_cert_reqs=required&{options}"
    try:
        wait_for(lambda: answers(url), "redis-server with TLS", 20)
        yield TlsServer("rediss", port, directory)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[Server]:
    command = needed("rabbitmq-server", "/usr/lib/rabbitmq/bin")
    port, tls_port, distribution, epmd = (free_port() for _ in range(4))
    # Outside of pytest's directory: the server has a user of its own, and each start of pytest takes the permissions of
    # other users away from that directory.
    directory = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
    configuration = directory / "rabbitmq.conf"
    _make_certificates(directory)
    (directory / "server.key").chmod(0o644)  # the server has a user of its own
    configuration.write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\ndefault_user = tester\ndefault_pass = {PASSWORD}\nlog.console = false\n"
        f"listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {directory}/ca.pem\n"
        f"ssl_options.certfile = {directory}/server.pem\nssl_options.keyfile = {directory}/server.key\n"
        "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
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
    yield Server(url, url.replace(PASSWORD, "wrong"), TlsServer("rabbitmq", tls_port, directory))
    end_marked("RABBITMQ_NODENAME", environment["RABBITMQ_NODENAME"])  # it has its own process group
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(directory, ignore_errors=True)
