"""The Celery application: Celery knows each of its settings, and it accepts only JSON messages."""

from __future__ import annotations

import celery.app.defaults
import pytest

from maestro_celery_plugin.broker import app as app_module
from maestro_celery_plugin.broker.app import SETTINGS, declare, make_app, queue_for
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.sender import Sender
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.session import BrokerLocation, Session

KNOWN = dict(celery.app.defaults.flatten(celery.app.defaults.NAMESPACES))


@pytest.fixture
def session(tmp_path):
    session = Session.create(tmp_path / "session")
    session.write_broker(BrokerLocation(url="redis://:secret@localhost:1/0"))
    return session


@pytest.mark.parametrize("name", SETTINGS)
def test_celery_knows_each_setting(name):
    """Celery reports no error for an unknown setting."""
    assert name in KNOWN


def test_every_setting_reaches_the_application(session):
    conf = make_app(session).conf
    assert {name: conf[name] for name in SETTINGS} == SETTINGS


def test_the_application_sends_and_accepts_only_json(session):
    conf = make_app(session).conf
    for name in ("task_serializer", "result_serializer", "event_serializer"):
        assert conf[name] == "json"
    for name in ("accept_content", "result_accept_content"):
        assert conf[name] == ["json"]


def test_there_is_no_result_backend(session, monkeypatch):
    """No search in all installed packages either: it takes longer than to start a sample."""
    monkeypatch.setattr("celery.app.backends.load_extension_class_names", pytest.fail)
    app = make_app(session)
    assert app.conf.result_backend is None
    assert type(app.backend).__name__ == "DisabledBackend"


def test_a_worker_acknowledges_a_message_before_it_runs_the_task(session):
    conf = make_app(session).conf
    assert not conf.task_acks_late
    assert not conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1


@pytest.mark.parametrize(
    ("url", "has_options"), [("redis://h", True), ("rediss://h", True), ("valkey://h", True), ("amqp://h", False)]
)
def test_only_redis_gets_the_options_of_redis(session, url, has_options):
    session.write_broker(BrokerLocation(url=url))
    app = make_app(session)
    assert app.conf.broker_url == url
    assert ("ack_emulation" in app.conf.broker_transport_options) == has_options
    if has_options:
        assert app.conf.broker_transport_options["ack_emulation"] is False


def test_a_session_without_broker_is_an_error(tmp_path):
    session = Session.create(tmp_path / "session")
    with pytest.raises(BrokerError, match=r"The session '.*' has no broker: its study has ended, or its conductor has not started one"):
        make_app(session)


def test_the_application_does_not_become_the_current_one_of_the_process(session):
    import celery

    assert make_app(session) is not celery.current_app._get_current_object()


def test_each_session_has_its_own_task_queues_which_need_no_binding(session, tmp_path):
    other = Session.create(tmp_path / "other")
    queue = queue_for(session, "merlin")

    assert queue.name == queue.routing_key == session.queue("merlin")
    assert queue.name != queue_for(other, "merlin").name
    assert queue.exchange.name == ""


def test_the_name_of_the_task_is_not_the_path_of_a_module():
    """A worker imports no module that a message names."""
    assert app_module.TASK_NAME == "maestro_celery.run_range"


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_who_cannot_connect_gets_the_error_at_once(session, monkeypatch, scheme):
    """Given a broker that is away, then neither a message nor a declaration waits for another try."""
    waits = []
    monkeypatch.setattr("kombu.utils.functional.sleep", waits.append)
    session.write_broker(BrokerLocation(url=f"{scheme}://127.0.0.1:1"))
    app = make_app(session)
    with pytest.raises(Exception, match="refused"):
        Sender(session, app).send(RangeTask("/study", "id", "sim", 1, 0, 3, 1, RunMode.FIRST), "q")
    with pytest.raises(Exception, match="refused"):
        declare(app, session, {"q"})
    assert not waits
