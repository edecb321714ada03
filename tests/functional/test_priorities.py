"""The order in which a task queue delivers messages: by their priority, on each broker."""

from __future__ import annotations

import pytest
from kombu import Exchange, Queue, pools
from servers import QUORUM
from support import PATIENCE_S, wait_for

from maestro_celery_plugin.broker.app import count_waiting, declare, make_app, queue_for
from maestro_celery_plugin.broker.messages import RangeTask, arguments_of
from maestro_celery_plugin.broker.sender import Sender
from maestro_celery_plugin.host import start as host
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.session import BrokerLocation, Session

# `start_broker` leaves the supervisor running on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(autouse=True)
def new_pools():
    """Forget the closed connections of other tests to the same server; a conductor has one sender."""
    pools.reset()


@pytest.fixture(params=["private", "redis", "rabbitmq"])
def session(request, tmp_path):
    session = Session.create(tmp_path / "session")
    if request.param == "private":
        host.start_broker(session)
        supervisor = host.host_of(session)
        yield session
        session.request_stop()
        supervisor.signal(15)
    else:
        session.write_broker(BrokerLocation(url=request.getfixturevalue(f"{request.param}_server").url))
        yield session


def received(app, queue: Queue) -> list[int]:
    """Receive all messages, as a worker receives them; return their first samples."""
    found = []

    def receive(body, message) -> None:
        found.append(arguments_of(message.body)[4])
        message.ack()

    with app.connection_for_read() as connection, connection.channel() as channel:
        consumer = connection.Consumer([queue], channel=channel, callbacks=[receive], accept=["json"])
        consumer.qos(prefetch_count=1)
        with consumer:
            while count_waiting(app, [queue]) or len(found) < 8:
                connection.drain_events(timeout=PATIENCE_S)
    return found


def test_samples_that_run_again_are_delivered_first_and_then_those_of_a_higher_level(session):
    """Given new samples in a queue, then those that run again overtake them; a higher level comes before a lower one."""
    app, queue = make_app(session, 5, confirms=True), queue_for(session, "q")
    declare(app, session, ["q"])
    sender = Sender(session, app)
    modes = [RunMode.FIRST] * 3 + [RunMode.AGAIN, RunMode.RESTART, RunMode.FIRST, RunMode.AGAIN, RunMode.ASSIGNED]
    for start, mode in enumerate(modes):
        sender.send(RangeTask("/s", "0", "m", 1, start, start + 1, 1, mode), "q", level=8 if start == 5 else 4)
    assert count_waiting(app, [queue]) == len(modes)

    assert received(app, queue) == [3, 4, 6, 7, 5, 0, 1, 2]

    sender.send(RangeTask("/s", "0", "m", 1, 0, 1, 1, RunMode.FIRST), "q")
    sender.send(RangeTask("/s", "0", "m", 1, 0, 1, 1, RunMode.AGAIN), "q")
    sender.close(["q"], delete=True)
    assert count_waiting(make_app(session, 5), [queue]) == 0


def test_a_queue_of_an_earlier_release_is_replaced(rabbitmq_server, tmp_path):
    """Given a queue without priorities, which RabbitMQ refuses to change, then `declare` makes a new one."""
    session = Session.create(tmp_path / "session")
    session.write_broker(BrokerLocation(url=rabbitmq_server.url))
    app, name = make_app(session, 5, confirms=True), session.queue("q")
    with app.connection_for_write() as connection:
        Queue(name, Exchange("", "direct"), routing_key=name)(connection.default_channel).declare()

    declare(app, session, ["q"])
    declare(app, session, ["q"])

    sender = Sender(session, app)
    sender.send(RangeTask("/s", "0", "m", 1, 0, 1, 1, RunMode.FIRST), "q")
    assert count_waiting(app, [queue_for(session, "q")]) == 1
    sender.close(["q"], delete=True)


def test_quorum_queues_have_no_priorities(rabbitmq_server, tmp_path):
    """Given a virtual host whose queues are quorum queues, then messages arrive in their order."""
    session = Session.create(tmp_path / "session")
    session.write_broker(BrokerLocation(url=rabbitmq_server.url.removesuffix("//") + f"/{QUORUM}"))
    app = make_app(session, 5, confirms=True)
    declare(app, session, ["q"])
    assert not session.read_broker().has_priorities
    queue, sender = queue_for(session, "q"), Sender(session, app)
    for start in range(8):
        mode = RunMode.AGAIN if start == 7 else RunMode.FIRST
        sender.send(RangeTask("/s", "0", "m", 1, start, start + 1, 1, mode), "q")
    assert received(app, queue) == list(range(8))
    sender.close(["q"], delete=True)


SPEC = """
    description: {name: priorities, description: d}
    study:
      - name: early
        description: its samples are sent first
        run: {cmd: "echo early $(X) >> $(OUTPUT_PATH)/order; until test -e $(SPECROOT)/go; do sleep 0.1; done; sleep 0.1", task_queue: q, priority: LOW}
      - name: late
        description: its samples are sent last
        run: {cmd: "echo late $(X) >> $(OUTPUT_PATH)/order; sleep 0.1", task_queue: q, priority: 0.9}
    merlin:
      resources: {workers: {w: {args: --concurrency 1, steps: [early, late]}}}
      samples: {file: samples.csv, column_labels: [X], generate: {cmd: "seq 20 > samples.csv"}}
"""


def sent(study) -> set[str]:
    """Return the steps whose samples have been sent."""
    place = study.path / "merlin_info"
    entries = read_ledger(place / "ledger") if (place / "ledger").exists() else None
    records = set() if entries is None else set(entries["record"][entries["kind"] == Kind.SENT].tolist())
    return {path.parent.name for path in place.glob("records/*/manifest.json") if Manifest.read(path).number in records}


def test_samples_of_a_step_with_a_higher_priority_start_first(run):
    """Given two steps that share a task queue, then all samples of the one with the higher priority start before the others.

    With a second slot, it would depend on the speed of the first one how often no message of the one step is in the queue.
    """
    study = run(SPEC, "-s", "1")
    wait_for(lambda: sent(study) == {"early", "late"}, "the messages of both steps")
    (study.path.parent / "go").touch()
    study.await_end()
    order = [line.split()[0] for line in study.outputs("order")[0].splitlines()]
    if order[0] == "early":  # the worker was there before the messages of the other step
        order.append(order.pop(0))
    assert order == ["late"] * 20 + ["early"] * 20
