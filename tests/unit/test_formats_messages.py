"""Messages with any body, headers and properties: a worker runs only what its session has signed, and counts the rest."""

from __future__ import annotations

import base64
import json
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer
from damages import VALUES, changed_json, each_example
from hypothesis import assume, given
from hypothesis import strategies as st
from kombu.message import Message

from maestro_celery_plugin.broker import envelope
from maestro_celery_plugin.broker.app import TASK_NAME
from maestro_celery_plugin.broker.envelope import MAX_BYTES, Refusal
from maestro_celery_plugin.broker.messages import RangeTask, Signer, arguments_of
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.worker import range_consumer
from maestro_celery_plugin.worker.gate import Gate

SIGNER = Signer(b"ab" * 32)
TASK = RangeTask("/study", "1", "sim/X.1", 1, 0, 10, 1, RunMode.FIRST, 0)
SIGNED = SIGNER.encode(TASK)
BODY = [SIGNED, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
PLAIN = {"task": TASK_NAME, "lang": "py", "ignore_result": True}
TEXTS = ("application/json", "application/x-python-serialize", "text/plain", "no/such", "utf-8", "binary", "no-such", "")
ANY = st.one_of(st.sampled_from(TEXTS), st.integers(0, len(VALUES) - 1).map(VALUES.__getitem__))
HEADERS = st.dictionaries(
    st.sampled_from(
        ["task", "id", "lang", "eta", "expires", "timelimit", "compression", "group", "chain", "chord", "shadow", "stamps", "root_id",
         "retries", "reply_to", "origin", "argsrepr", "ignore_result", "replaced_task_nesting", "x-death", ""]
    ), ANY, max_size=6,
)  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> bytes | str:
    """Draw a body: any bytes, parts of a signed one, JSON of another shape, and encodings of a signed one."""
    whole = json.dumps(BODY)
    kinds: list[st.SearchStrategy[Any]] = [
        st.binary(max_size=300),
        st.integers(0, len(whole)).map(lambda end: whole[:end].encode()),
        changed_json(BODY).map(json.dumps).map(str.encode),
        changed_json(SIGNED).map(lambda arguments: json.dumps([arguments, {}, {}]).encode()),
        st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]).map(whole.encode),
        st.sampled_from([whole, whole.encode(), b"[" * 90_000, whole.encode() + b" " * MAX_BYTES, zlib.compress(whole.encode()),
                         b"\xff" * 50, "\ud800" + whole, "[" * 90_000]),
    ]  # fmt: skip
    return draw(st.one_of(kinds))


class Received:
    """A consumer with a recorder in place of Celery, and a channel that records what it is told about a message."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handled: list[Message] = []
        self.rejected: list[bool] = []
        self.gate = Gate()
        self.gate.slots = 10**9
        monkeypatch.setattr(range_consumer, "gate", self.gate)
        monkeypatch.setattr(Consumer, "create_task_handler", lambda consumer: self.handled.append)
        self.consumer = object.__new__(range_consumer.RangeConsumer)
        self.consumer.app = SimpleNamespace(signer=SIGNER)
        self.consumer.connection_errors = ()
        self.take = self.consumer.create_task_handler()

    def basic_reject(self, tag: str, requeue: bool) -> None:
        self.rejected.append(requeue)

    no_ack_consumers = None

    def prepare_message(self, *args: Any) -> Any:
        raise AssertionError("unused")

    def receive(self, **fields: Any) -> None:
        """Receive a message as kombu delivers it; what kombu cannot decode takes the way of `on_decode_error`."""
        message = Message(channel=self, delivery_tag="1", accept={"application/json"}, **fields)
        if message.errors:
            try:
                message._reraise_error(self.consumer.on_decode_error)
            except Exception as error:
                raise AssertionError("the error ends the worker") from error
            return
        self.take(message)


@pytest.fixture
def received(monkeypatch) -> Received:
    return Received(monkeypatch)


def test_any_message_is_refused_and_counted_or_is_signed(received):
    def counts() -> tuple[int, int]:
        return len(received.handled), sum(received.gate.refused.values())

    @each_example(60)
    @given(bodies(), HEADERS, ANY, ANY, st.dictionaries(st.sampled_from(["delivery_mode", "expiration", "priority", "reply_to"]), ANY))
    def check(body: bytes | str, headers: dict[str, Any], kind: Any, encoding: Any, properties: dict[str, Any]) -> None:
        handled, refused = counts()
        received.receive(body=body, headers=headers, content_type=kind, content_encoding=encoding, properties=properties)
        after = counts()
        assert sum(after) == handled + refused + 1
        if after[0] > handled:
            assert arguments_of(body) == SIGNED
            message = received.handled[-1]
            assert json.loads(message.body) == [SIGNED, {}, {}]
            assert {key: message.headers[key] for key in message.headers if key != "id"} == PLAIN
            assert message.headers["id"] != headers.get("id")
            assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
            assert not message.properties
        else:
            assert received.rejected[-1] is False

    received.receive(body=json.dumps(BODY), headers=PLAIN, content_type="application/json", content_encoding="utf-8")
    assert counts() == (1, 0)
    check()


@each_example(100)
@given(changed_json(SIGNED))
def test_a_signature_is_that_of_one_message(arguments):
    assume(json.dumps(arguments) != json.dumps(SIGNED))
    task = SIGNER.decode(arguments) if isinstance(arguments, list) else None
    assert task is None


@each_example(40)
@given(st.tuples(*[st.text("a/ä\u2028\"\\\0", max_size=9)] * 3), st.integers(0, 2**63), st.sampled_from(RunMode))
def test_a_signed_message_is_read_as_it_was_sent(texts, number, mode):
    task = RangeTask(*texts, number, 0, number, 1, mode, 3)
    assert SIGNER.decode(arguments_of(json.dumps([SIGNER.encode(task), {}, {}]))) == task
    assert Signer(b"cd" * 32).decode(SIGNER.encode(task)) is None


REDIS = {
    "body": base64.b64encode(json.dumps(BODY).encode()).decode(), "content-type": "application/json", "content-encoding": "utf-8",
    "headers": PLAIN, "properties": {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": "q"}},
}  # fmt: skip


@st.composite
def items(draw: st.DrawFn) -> bytes:
    """Draw an item of a list of Redis, in which kombu stores messages."""
    whole = json.dumps(REDIS).encode()
    return draw(
        st.one_of(
            st.binary(max_size=200),
            st.integers(0, len(whole)).map(lambda end: whole[:end]),
            changed_json(REDIS).map(json.dumps).map(str.encode),
            st.sampled_from([b"", b"[" * 90_000, whole + b" " * MAX_BYTES, b"[]", b"{}", b'{"body": "?"}', b'{"a":' * 50_000]),
        )
    )


def test_any_item_of_a_redis_list_is_refused_or_has_a_new_envelope(monkeypatch):
    refused: list[Refusal] = []
    channel = object.__new__(envelope._CheckedChannel)
    monkeypatch.setattr(envelope._CheckedChannel, "refuse", staticmethod(refused.append), raising=False)

    @each_example(60)
    @given(items())
    def check(item: bytes) -> None:
        before = len(refused)
        answer = channel._check((b"q\x06\x169", item))
        if answer is None:
            assert refused[before:] == [Refusal.UNREADABLE]
            return
        message = json.loads(answer[1])
        assert message["headers"] == {} and message["content-type"] == "application/json"
        assert message["properties"].keys() == {"body_encoding", "delivery_tag", "delivery_info"}
        assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q"}

    assert channel._check((b"q", json.dumps(REDIS).encode()))
    check()


@each_example(100)
@given(st.binary(max_size=120), st.integers(0, 4))
def test_any_properties_of_an_amqp_message_are_read_or_ignored(data, offset):
    properties, end = envelope._decode_properties(data, offset)
    assert isinstance(properties, dict) and end >= offset
