"""Messages of somebody who reaches the broker of a study and does not have its key: they take no slot and end no worker.

The tests run over each broker. The junk arrives while samples run, at least as many messages of each kind as slots.
"""

from __future__ import annotations

import bz2
import datetime
import json

import pytest
from intruder import SPEC, Intruder, finish
from support import wait_for

from maestro_celery_plugin.broker.app import TASK_NAME
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger

COPIES = 3
# As a header: RabbitMQ itself drops a message whose property says that it has expired.
EXPIRED = {"headers": {"expires": "1999-01-01T00:00:00+00:00"}}
FUTURE = datetime.datetime(2999, 1, 1)
HEADERS = {"task": TASK_NAME, "id": "1", "lang": "py"}
BODY = json.dumps([["no", "such", "message"], {}, {}]).encode()
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
UNSIGNED = {
    "expired": EXPIRED,
    "far in the future": {"eta": FUTURE},
    "of another task": {"name": "os.system"},
    "compressed": {"compression": "bzip2"},
    "with a callback": {"link": {"task": "os.system", "args": [], "kwargs": {}, "options": {}}},
}
# Messages that the libraries can send to each broker: body and options of kombu's Producer.publish.
UNREADABLE = {
    "text": (b"text", {"content_type": "text/plain", "content_encoding": "utf-8", "headers": HEADERS}),
    "pickle": (
        b"cos\nsystem\n.",
        {"content_type": "application/x-python-serialize", "content_encoding": "binary", "headers": HEADERS},
    ),
    "not JSON": (b"{", {**JSON, "headers": HEADERS}),
    "not in this encoding": (b"\xff\xfe", {**JSON, "headers": HEADERS}),
    "in an unknown encoding": (BODY, {**JSON, "content_encoding": "no-such", "headers": HEADERS}),
    "of an unknown type": (BODY, {"content_type": "no/such", "content_encoding": "utf-8", "headers": HEADERS}),
    "without headers": (BODY, JSON),
    "without a task": (BODY, {**JSON, "headers": {"id": "1"}}),
    "with headers of other types": (BODY, {**JSON, "headers": {"task": [1], "id": {}, "eta": 5, "compression": []}}),
    "empty": (b"", {**JSON, "headers": HEADERS}),
    "deep": (b"[" * 100_000, {**JSON, "headers": HEADERS}),
    "a bomb": (bz2.compress(b"0" * 200_000_000), {**JSON, "headers": {**HEADERS, "compression": "application/x-bz2"}}),
    "large": (b'"' + b"x" * 1_000_000 + b'"', {**JSON, "headers": HEADERS}),
}
# Values that kombu's client for Redis would not send.
RAW = [b"garbage", b"\xff\xfe\x00", b"", b"[]", b"{}", b"5", b'{"body": 5}', b'{"body": "?", "properties": {}}', b"[" * 100_000]


# Each broker once, and each pool once.
@pytest.fixture(params=["private-threads", "redis-prefork", "rabbitmq-threads"])
def intruder(request, run) -> Intruder:
    broker, pool = request.param.split("-")
    options = () if broker == "private" else ("--broker", request.getfixturevalue(f"{broker}_server").url)
    study = run(SPEC.replace("--pool threads", f"--pool {pool}"), *options)
    assert study.code == 0, study.output
    study.await_text("sim/*/runs", "run", 2)
    return Intruder(study)


def finish_with_one_worker(study) -> None:
    finish(study)
    assert [path.name for path in study.path.glob("merlin_info/workers/*.log")] == ["w-1.log"]


def await_refused(study, count: int) -> None:
    def refused() -> int:
        return sum(worker["refused_messages"] for worker in study.status()["workers"])

    wait_for(lambda: refused() >= count, f"the refusal of {count} messages; seen: {refused()}")
    assert refused() == count


def test_unsigned_messages_take_no_slot(intruder):
    """Given messages that Celery would accept and drop or delay, then the worker refuses them and runs the samples."""
    for options in UNSIGNED.values():
        for _ in range(COPIES):
            intruder.send("no", "such", "message", **options)

    await_refused(intruder.study, COPIES * len(UNSIGNED))
    explained = intruder.study.command("maestro-celery", "explain", str(intruder.study.path)).stdout
    assert "15 messages were refused by worker 'w-1'" in " ".join(explained.split())
    finish_with_one_worker(intruder.study)
    # One line for each kind: a compressed message cannot be read on each broker.
    assert 1 <= intruder.worker_log().count("Refused a message that") <= 2


def test_unreadable_messages_end_no_worker(intruder):
    sent = 0
    with intruder.app.connection_for_write() as connection, connection.Producer() as producer:
        for body, options in UNREADABLE.values():
            for _ in range(COPIES):
                producer.publish(body, routing_key=intruder.session.queue("q"), **options)
                sent += 1
    if intruder.redis is not None:
        for item in RAW * COPIES:
            intruder.redis.lpush(intruder.session.queue("q"), item)
            sent += 1

    await_refused(intruder.study, sent)
    finish_with_one_worker(intruder.study)
    assert intruder.worker_log().count("Refused a message that") == 2
    assert "Traceback" not in intruder.worker_log()


def test_the_headers_of_a_signed_message_have_no_effect(intruder):
    """Given genuine messages whose headers somebody has changed, then a worker takes them like any other message."""
    study, hostile = intruder.study, [
        EXPIRED,
        {"eta": FUTURE},
        {"time_limit": 0.001, "soft_time_limit": 0.001},
        {"link": {"task": "os.system", "args": [], "kwargs": {}, "options": {"queue": intruder.session.queue("q")}}},
        {"headers": {"stamped_headers": ["a"], "stamps": {"a": 5}, "chord": {}, "replaced_task_nesting": "x"}},
        {"retries": 10**9, "task_id": "the same for all"},
        {"headers": {"id": "the same for all", "task": "os.system"}},
    ]
    wait_for(lambda: count(study, Kind.STARTED) == 13, "the sample of the second step")
    taken = count(study, Kind.TAKEN)

    # Each message has its own name, of a range outside of the step record: it is taken, and runs no sample.
    for number, options in enumerate(hostile, 1000):
        intruder.send(*intruder.signed(*intruder.fields(number, number + 1)), **options)

    wait_for(lambda: count(study, Kind.TAKEN) == taken + len(hostile), "the messages in the ledger")
    finish_with_one_worker(study)
    assert refused_in(intruder.worker_log()) == 0


def count(study, kind: Kind) -> int:
    return int((read_ledger(study.path / "merlin_info" / "ledger")["kind"] == kind).sum())


def refused_in(log: str) -> int:
    return log.count("Refused a message")


def test_messages_that_amqp_cannot_decode_end_no_worker(run, rabbitmq_server):
    """Given messages whose properties raise errors in amqp, then RabbitMQ does not deliver them again and again."""
    study = run(SPEC, "--broker", rabbitmq_server.url)
    study.await_text("sim/*/runs", "run", 2)
    intruder = Intruder(study)
    after_9999 = {"when": datetime.datetime(9999, 12, 31)}
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    with intruder.app.connection_for_write() as connection:
        channel = connection.channel()
        for changes in ({"content_type": "not-utf8"}, {"headers": after_9999}, {"headers": deep}):
            for _ in range(COPIES):
                publish_raw(channel, intruder.session.queue("q"), **changes)

    await_refused(study, 3 * COPIES)
    finish_with_one_worker(study)


def publish_raw(channel, queue: str, content_type: str = "application/json", headers: dict | None = None) -> None:
    """Publish a message with properties that amqp cannot decode: it encodes valid ones, whose bytes are replaced."""
    message = channel.prepare_message(BODY, content_type=content_type, headers={})
    message._serialize_properties = lambda: properties_of(content_type, headers)
    channel.basic_publish(message, routing_key=queue)


def properties_of(content_type: str, headers: dict | None) -> bytes:
    kind = content_type.encode().replace(b"not-utf8", b"\xff\xfe\xfa")
    return (0xA000).to_bytes(2, "big") + len(kind).to_bytes(1, "big") + kind + table_of(headers or {})


def table_of(values: dict) -> bytes:
    """Return an AMQP table; without recursion, because its depth is the point."""
    if "when" in values:
        inner = b"\x04whenT" + (10**15).to_bytes(8, "big")
        return len(inner).to_bytes(4, "big") + inner
    depth = 0
    while values:
        values, depth = values["a"], depth + 1
    encoded = (0).to_bytes(4, "big")
    for _ in range(depth):
        inner = b"\x01aF" + encoded
        encoded = len(inner).to_bytes(4, "big") + inner
    return encoded
