"""Brokers by URL for tests: a Redis and a RabbitMQ server, each started once and ended after the last test."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kombu import Connection
from support import needed, wait_for

from maestro_celery_plugin.processes import end_marked

__all__ = [
    "ACK_LIMIT_S",
    "LIMITED",
    "PASSWORD",
    "QUORUM",
    "Server",
    "TlsServer",
    "free_port",
    "make_certificates",
    "rabbitmq_on",
    "rabbitmq_server",
    "redis_on",
    "redis_server",
    "redis_tls_on",
    "redis_tls_server",
    "tls_server_with",
]

PASSWORD = "s3cret-of-the-test"
# The virtual host of RabbitMQ whose queues are quorum queues.
QUORUM = "quorum"
# A user who may log in, and may not use new queues.
LIMITED = "limited"
# How long RabbitMQ waits for the acknowledgement of a message: samples of the tests take longer.
ACK_LIMIT_S = 3


@dataclasses.dataclass
class TlsServer:
    """A server that speaks TLS, and wants a certificate of its clients.

    Attributes:
        name: The name of its kind in Merlin.
        port: Its port.
        plain_port: Its port without TLS; None without one.
        files: Directory of ``ca.pem``, which has signed all certificates, ``client.pem`` and ``client.key``; ``other.pem``
            is another certificate authority, ``stranger.pem`` a certificate of it.
    """

    name: str
    port: int
    files: Path
    plain_port: int | None = None

    def url(self, port: int | None = None, host: str = "127.0.0.1", password: str = PASSWORD, **keys: str) -> str:
        """Return a URL with TLS keys, of which files are names; ``certificate`` is that of the client, or empty."""
        certificate = keys.pop("certificate", "client")
        files = {"certfile": f"{certificate}.pem", "keyfile": f"{certificate}.key"} if certificate else {}
        query = "&".join(
            f"ssl_{key}={self.files / value if '.' in value else value}" for key, value in {**files, **keys}.items()
        )
        user, vhost = ("tester", "/%2F") if self.name == "rabbitmq" else ("", "/0")
        scheme = "amqps" if self.name == "rabbitmq" else "rediss"
        return f"{scheme}://{user}:{password}@{host}:{port or self.port}{vhost}?{query}"

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
    """Return a port that nobody uses, below those of the clusters and those that Linux gives to outgoing connections.

    A connection could get one of the latter before the server has it, or while a test has stopped the server.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 17_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def answers(url: str) -> bool:
    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            return True
    except Exception:  # each transport raises its own errors until the server has started
        return False


@contextlib.contextmanager
def redis_on(port: int, directory: Path, settings: str = "") -> Iterator[str]:
    """Run a Redis server on a port, with more settings; yield its URL. Its data is lost at its end."""
    configuration = directory / "redis.conf"
    configuration.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {PASSWORD}\nsave ""\ndir {directory}\n'
        f"unixsocket {directory}/socket\nuser {LIMITED} on >{PASSWORD} ~nothing &* +@all\n{settings}\n"
    )
    process = subprocess.Popen([needed("redis-server"), str(configuration)], stdout=subprocess.DEVNULL)
    url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    try:
        wait_for(lambda: answers(url), "redis-server")
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[Server]:
    port = free_port()
    with redis_on(port, tmp_path_factory.mktemp("redis")) as url:
        yield Server(url, url.replace(PASSWORD, "wrong"))


def make_certificates(directory: Path) -> None:
    def openssl(*words: str) -> None:
        subprocess.run([needed("openssl"), *words], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for authority in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name, authority, days in (
        ("server", "ca", "2"),
        ("client", "ca", "2"),
        ("expired", "ca", "-1"),
        ("stranger", "other", "2"),
    ):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed, "-days", days)
    openssl("pkey", "-in", "client.key", "-aes256", "-passout", "pass:secret", "-out", "locked.key")
    (directory / "locked.key").write_text((directory / "client.pem").read_text() + (directory / "locked.key").read_text())


@contextlib.contextmanager
def tls_server_with(certificate: str, files: Path) -> Iterator[int]:
    """Run a server that only shows a certificate; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / f"{certificate}.pem", files / f"{certificate}.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                        tls.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def redis_tls_on(directory: Path, port: int, plain_port: int) -> Iterator[TlsServer]:
    """Run a Redis server with the certificates of a directory. Its data is lost at its end."""
    (directory / "redis.conf").write_text(
        f'bind 127.0.0.1\nport {plain_port}\ntls-port {port}\nrequirepass {PASSWORD}\nsave ""\ndir {directory}\n'
        "tls-cert-file server.pem\ntls-key-file server.key\ntls-ca-cert-file ca.pem\n"
    )
    process = subprocess.Popen([needed("redis-server"), "redis.conf"], cwd=directory, stdout=subprocess.DEVNULL)
    server = TlsServer("rediss", port, directory, plain_port)
    try:
        wait_for(lambda: answers(server.url(ca_certs="ca.pem")), "redis-server with TLS")
        yield server
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def redis_tls_server(tmp_path_factory) -> Iterator[TlsServer]:
    directory = tmp_path_factory.mktemp("tls")
    make_certificates(directory)
    with redis_tls_on(directory, free_port(), free_port()) as server:
        yield server


def _definitions() -> dict[str, list[dict[str, object]]]:
    """Return the users and the virtual hosts of RabbitMQ; a server with definitions has no default ones."""
    salt = b"salt"
    password = base64.b64encode(salt + hashlib.sha256(salt + PASSWORD.encode()).digest()).decode()
    user = {"name": "tester", "password_hash": password, "hashing_algorithm": "rabbit_password_hashing_sha256"}
    permissions = {"configure": ".*", "write": ".*", "read": ".*"}
    metadata = {"description": "", "tags": [], "default_queue_type": "quorum"}
    return {
        "users": [{**user, "name": name, "tags": ""} for name in ("tester", LIMITED, "client")],
        "vhosts": [{"name": "/"}, {"name": QUORUM, "default_queue_type": "quorum", "metadata": metadata}],
        "permissions": [
            *({"user": "tester", "vhost": vhost, **permissions} for vhost in ("/", QUORUM)),
            {"user": "client", "vhost": "/", **permissions},
            {"user": LIMITED, "vhost": "/", **permissions, "configure": "^$"},
        ],
    }


@contextlib.contextmanager
def rabbitmq_on() -> Iterator[Server]:
    """Run a RabbitMQ server; its data is lost at its end."""
    command = needed("rabbitmq-server", "/usr/lib/rabbitmq/bin")
    port, tls_port, distribution, epmd = (free_port() for _ in range(4))
    # Outside of pytest's directory: the server has a user of its own, and each start of pytest takes the permissions of
    # other users away from that directory.
    directory = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
    configuration = directory / "rabbitmq.conf"
    make_certificates(directory)
    (directory / "server.key").chmod(0o644)  # the server has a user of its own
    configuration.write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\nload_definitions = {directory}/definitions.json\nlog.console = false\n"
        f"consumer_timeout = {1000 * ACK_LIMIT_S}\n"
        "auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = AMQPLAIN\nauth_mechanisms.3 = EXTERNAL\n"
        "ssl_cert_login_from = common_name\n"
        f"listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {directory}/ca.pem\n"
        f"ssl_options.certfile = {directory}/server.pem\nssl_options.keyfile = {directory}/server.key\n"
        "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
    )
    (directory / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 500}]}].\n")
    (directory / "plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
    (directory / "definitions.json").write_text(json.dumps(_definitions()))
    directory.chmod(0o777)
    environment = {
        **os.environ,
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(epmd),  # the name server of Erlang ends with its server, and may not be shared
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_CONFIG_FILE": str(configuration.with_suffix("")),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
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
    try:
        wait_for(lambda: answers(url) or process.poll() is not None, "rabbitmq-server")
        assert process.poll() is None, (directory / "out").read_text()
        yield Server(url, url.replace(PASSWORD, "wrong"), TlsServer("rabbitmq", tls_port, directory, port))
    finally:
        end_marked("RABBITMQ_NODENAME", environment["RABBITMQ_NODENAME"])  # it has its own process group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[Server]:
    with rabbitmq_on() as server:
        yield server
