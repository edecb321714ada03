"""The start of a worker: it waits for its broker, and gives up only if it must."""

from __future__ import annotations

import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.broker.choice import check_reachable
from maestro_celery_plugin.errors import BrokerError, BrokerUnavailableError
from maestro_celery_plugin.study.session import BrokerLocation, Session
from maestro_celery_plugin.worker import celery_worker
from maestro_celery_plugin.worker.celery_worker import BROKER_LIMIT_S, _await_broker


@pytest.fixture
def session(tmp_path):
    return Session.create(tmp_path / "session")


@pytest.fixture
def broker(monkeypatch):
    """Let the broker answer after some looks; each wait moves the clock."""
    looks, now = [], [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(clock, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def answer(after, error=BrokerUnavailableError):
        def check(session, host):
            looks.append(now[0])
            if len(looks) <= after:
                raise error("the broker is away")

        monkeypatch.setattr(celery_worker, "check_reachable", check)
        return looks

    return answer


def test_a_worker_waits_for_a_broker_that_is_started_again(session, broker, caplog):
    session.write_broker(BrokerLocation(url="redis://localhost:1/0"))
    looks = broker(after=10)

    _await_broker(session, "w-1")

    assert len(looks) == 11
    assert [record.getMessage() for record in caplog.records] == [
        f"Worker 'w-1' waits up to {BROKER_LIMIT_S:.0f} s for its broker: the broker is away"
    ]


def test_a_worker_that_starts_together_with_its_broker_waits_without_a_message(session, broker, caplog):
    looks = broker(after=2)

    _await_broker(session, "w-1")

    assert len(looks) == 3
    assert caplog.records == []


def test_a_worker_gives_up_in_the_end(session, broker):
    looks = broker(after=10_000)
    with pytest.raises(BrokerUnavailableError):
        _await_broker(session, "w-1")
    assert looks[-1] - looks[0] == pytest.approx(BROKER_LIMIT_S, abs=2)


def test_a_worker_does_not_wait_for_a_broker_that_refuses_it(session, broker):
    looks = broker(after=1, error=BrokerError)
    with pytest.raises(BrokerError):
        _await_broker(session, "w-1")
    assert len(looks) == 1


def test_a_worker_does_not_wait_after_the_end_of_its_study(session, broker):
    session.request_stop()
    looks = broker(after=10_000)
    with pytest.raises(BrokerUnavailableError):
        _await_broker(session, "w-1")
    assert len(looks) == 1


def test_a_missing_broker_may_start_later(session):
    with pytest.raises(BrokerUnavailableError, match="has no broker: its study has ended, or its conductor has not started one"):
        check_reachable(session, "here")


@pytest.mark.parametrize("scheme", ["rediss://:geheim", "amqps://user:geheim"])
def test_a_machine_without_the_files_of_certificates_says_which(session, scheme):
    """Given a URL whose files exist where `maestro run` was called, then a worker elsewhere does not wait for them."""
    session.write_broker(BrokerLocation(url=f"{scheme}@127.0.0.1:1/0?ssl_ca_certs=/nowhere/ca.pem"))
    with pytest.raises(BrokerError, match=r"cannot be used on here: '/nowhere/ca\.pem' \(ca_certs\) is not a file; give") as error:
        check_reachable(session, "here")
    assert not isinstance(error.value, BrokerUnavailableError)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize("url", ["redis://:geheim@127.0.0.1:1/0", "amqp://user:geheim@127.0.0.1:1//"])
def test_a_closed_port_may_open_later(session, url):
    session.write_broker(BrokerLocation(url=url))
    with pytest.raises(BrokerUnavailableError, match=r"cannot be reached from here: .* refused.* Set --broker-host") as error:
        check_reachable(session, "here")
    assert "geheim" not in str(error.value)
