"""Priorities of steps: messages of a higher level are received first, on each broker."""

from __future__ import annotations

import json
import signal

import pytest
from support import wait_for

from maestro_celery_plugin.broker import private
from maestro_celery_plugin.broker.app import count_waiting, declare, make_app, queue_for
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.sender import Sender
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.session import BrokerLocation, Session


@pytest.fixture(params=["private", "redis", "rabbitmq"])
def session(request, tmp_path):
    session = Session.create(tmp_path / "session")
    session.write_priorities()
    if request.param != "private":
        session.write_broker(BrokerLocation(url=request.getfixturevalue(f"{request.param}_server").url))
        yield session
        return
    supervisor = private.begin(session)
    private.start(session)
    yield session
    private.supervisor_of(session).signal(signal.SIGTERM)
    wait_for(lambda: supervisor.poll() is not None, "the end of the broker")


def test_messages_of_a_higher_level_are_received_first(session):
    app, queue = make_app(session, 5), queue_for(session, "q")
    sender = Sender(session, app)
    declare(app, [queue])
    for level in (5, 0, 9, 2, 7, 5, 9):
        sender.send(RangeTask("/study", "0", "sim", level, 0, 5, 1, RunMode.FIRST), "q", level)
    assert count_waiting(app, [queue]) == 7
    received = []
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as messages:
        for _ in range(7):
            message = messages.get(timeout=5)
            received.append(json.loads(message.body)[0][3])
            message.ack()
    assert received == [9, 9, 7, 5, 5, 2, 0]
    sender.close(["q"], delete=True)


SPEC = """
    description: {name: priorities, description: d}
    study:
      - name: early
        description: its samples are sent first
        run: {cmd: "echo early $(X) >> $(OUTPUT_PATH)/order; sleep 0.2", task_queue: q, priority: LOW}
      - name: late
        description: its samples are sent last
        run: {cmd: "echo late $(X) >> $(OUTPUT_PATH)/order; sleep 0.2", task_queue: q, priority: 0.9}
    merlin:
      resources: {workers: {w: {args: --concurrency 2, steps: [early, late]}}}
      samples: {file: samples.csv, column_labels: [X], generate: {cmd: "seq 20 > samples.csv"}}
"""


def test_samples_of_a_step_with_a_higher_priority_start_first(run):
    """Given two steps that share a task queue, then most samples of the one with the higher priority start before."""
    study = run(SPEC).await_end()
    order = [line.split()[0] for line in study.outputs("order")[0].splitlines()]
    assert (order.count("early"), order.count("late")) == (20, 20)
    assert order[:20].count("late") >= 14, order
