"""The Celery application: every setting is one that Celery knows, and no pickle gets through."""

from __future__ import annotations

import celery.app.defaults
import pytest

from maestro_celery_plugin.broker import app as app_module
from maestro_celery_plugin.broker.app import SETTINGS, make_app, queue_for
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.study.session import BrokerLocation, Session

KNOWN = dict(celery.app.defaults.flatten(celery.app.defaults.NAMESPACES))


@pytest.fixture
def session(tmp_path):
    session = Session.create(tmp_path / "session")
    session.write_broker(BrokerLocation(url="redis://:secret@localhost:1/0"))
    return session


@pytest.mark.parametrize("name", SETTINGS)
def test_celery_knows_the_setting(name):
    """It accepts a misspelt one in silence."""
    assert name in KNOWN


def test_every_setting_reaches_the_application(session):
    conf = make_app(session).conf
    assert {name: conf[name] for name in SETTINGS} == SETTINGS


def test_messages_are_json_and_nothing_else(session):
    conf = make_app(session).conf
    for name in ("task_serializer", "result_serializer", "event_serializer"):
        assert conf[name] == "json"
    for name in ("accept_content", "result_accept_content"):
        assert conf[name] == ["json"]


def test_there_is_no_result_backend(session):
    app = make_app(session)
    assert app.conf.result_backend is None
    assert type(app.backend).__name__ == "DisabledBackend"


def test_a_message_is_acknowledged_when_it_is_taken(session):
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
    assert bool(app.conf.broker_transport_options) == has_options
    if has_options:
        assert app.conf.broker_transport_options["visibility_timeout"] >= 7 * 24 * 3600


def test_a_session_without_broker_is_an_error(tmp_path):
    session = Session.create(tmp_path / "session")
    with pytest.raises(BrokerError, match=r"The session '.*' has no broker; its study has ended\."):
        make_app(session)


def test_it_is_not_the_current_application_of_the_process(session):
    import celery

    assert make_app(session) is not celery.current_app._get_current_object()


def test_queues_of_sessions_differ_and_need_no_binding(session, tmp_path):
    other = Session.create(tmp_path / "other")
    queue = queue_for(session, "merlin")

    assert queue.name == queue.routing_key == session.queue("merlin")
    assert queue.name != queue_for(other, "merlin").name
    assert queue.exchange.name == ""


def test_the_tasks_name_is_no_modules():
    """Nothing that a message names is imported."""
    assert app_module.TASK_NAME == "maestro_celery.run_range"
