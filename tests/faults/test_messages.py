"""Messages that are lost, forged, replayed or too large; and secrets that must not be visible."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import psutil
import pytest
import redis
from intruder import SPEC, Intruder, finish
from redis.backoff import NoBackoff
from redis.retry import Retry
from support import kill, wait_for

from maestro_celery_plugin.broker.app import TASK_NAME
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger

REFUSAL = "Refused a message that does not belong to this session."
# Two samples wait for the end of the test; the others are in the queue.
HOLD = "until test -e $(SPECROOT)/go; do sleep 0.1; done"


@pytest.fixture
def intruder(run):
    study = run(SPEC)
    study.await_text("sim/*/runs", "run", 3)
    return Intruder(study)


def test_forged_messages_are_refused(intruder):
    """Given messages without a valid signature, when a worker receives them, then it refuses them."""
    other = str(intruder.study.path.parent / "other")
    intruder.send(*intruder.fields(epoch=9), "0" * 64)
    intruder.send(other, "sim", 1, 0, 1, 9, "0" * 64)
    intruder.send("no", "such", "message")
    intruder.send(*intruder.fields()[:3], "0; touch x", 5, 1, "x")
    intruder.send(name="os.system")

    wait_for(lambda: sum(w["refused_messages"] for w in intruder.study.status()["workers"]) == 5, "refusals")
    finish(intruder.study)


def test_a_signature_is_valid_for_one_message_only(intruder):
    signature = intruder.signer.sign(*intruder.fields(0, 1))

    intruder.send(*intruder.fields(0, 12), signature)

    wait_for(lambda: REFUSAL in intruder.worker_log(), "the refusal")
    finish(intruder.study)


def test_replayed_messages_run_no_sample_twice(run):
    """Given valid messages that arrive again, even after the end of the step, then no sample runs again.

    The samples delete their scripts, so that no file of theirs shows that they have run.
    """
    study = run(SPEC.replace("echo run >> runs;", "echo run >> runs; rm -f $0;"))
    study.await_text("sim/*/runs", "run", 3)
    intruder = Intruder(study)
    signature = intruder.signer.sign(*intruder.fields())
    for _ in range(3):
        intruder.send(*intruder.fields(), signature)
    wait_for(lambda: study.states().get("sim") == "FINISHED", "the end of the step")
    for _ in range(3):
        intruder.send(*intruder.fields(), signature)

    finish(study)
    assert REFUSAL not in intruder.worker_log()


def test_oversized_and_invalid_messages_have_no_effect(intruder):
    queue = intruder.session.queue("q")
    intruder.send("x" * 10_000_000, "sim", 1, 0, 12, 1, "0" * 64)
    intruder.redis.lpush(queue, b"no message at all")
    intruder.redis.lpush(queue, json.dumps({"body": "bm8=", "headers": {}, "properties": {}}))
    intruder.send(*intruder.fields(0, 10**15, 7), intruder.signer.sign(*intruder.fields(0, 10**15, 7)))

    finish(intruder.study)


def test_pickle_is_refused(intruder):
    """Given a pickled message, when a worker receives it, then the worker does not unpickle it."""
    trace = intruder.study.path.parent / "unpickled"
    payload = f"cbuiltins\neval\n(S'open({str(trace)!r}, \"w\")'\ntR.".encode()
    with intruder.app.connection_for_write() as connection, connection.Producer() as producer:
        producer.publish(
            payload,
            content_type="application/x-python-serialize",
            content_encoding="binary",
            routing_key=intruder.session.queue("q"),
            headers={"task": TASK_NAME, "id": "1", "lang": "py"},
        )

    finish(intruder.study)
    assert not trace.exists()


def test_no_sample_is_lost_with_the_data_of_the_broker(intruder):
    intruder.admin.flushall()

    finish(intruder.study)


def test_deleted_messages_are_sent_again(run):
    """Given a queue whose messages are deleted while workers live, then the conductor sends the samples again."""
    study = run(SPEC.replace("seq 1 12", "seq 1 50").replace("sleep 0.3", HOLD))
    study.await_text("sim/*/*/runs", "run", 2)
    intruder = Intruder(study)
    queue = intruder.session.queue("q")
    lists = [queue, *(f"{queue}\x06\x16{priority}" for priority in range(1, 10))]  # kombu has one per priority
    wait_for(lambda: intruder.redis.delete(*lists), "messages in the queue")

    (study.path.parent / "go").touch()
    study.await_end()

    assert study.outputs("sim/*/*/runs") == ["run\n"] * 50
    entries = read_ledger(study.path / "merlin_info" / "ledger")
    assert (entries["kind"] == Kind.SENT).sum() > 2


def test_secrets_are_in_files_of_mode_0600_only(intruder):
    """Given a running study, then password and secret are in no command line, environment, log or other file."""
    study = intruder.study
    url = intruder.session.read_broker().url
    secrets = [url.split(":")[2].split("@")[0], (intruder.session.path / "secret").read_text()]
    assert all(len(secret) >= 32 for secret in secrets)

    wait_for(lambda: study.processes("wait.sh"), "the sample of the second step, which waits")
    sample = min(study.processes("wait.sh"), key=started_at)  # it forks the `sleep` of its loop
    for pid in [*study.processes(), *study.server(), sample]:
        for name in ("cmdline", "environ"):
            text = _text_of(Path(f"/proc/{pid}/{name}"))
            assert not any(secret in text for secret in secrets), f"{name} of {text}"
    assert _text_of(Path(f"/proc/{sample}/environ"))
    for path in study.path.rglob("*"):
        if any(secret in _text_of(path) for secret in secrets):
            assert path.parent == intruder.session.path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(intruder.session.path.stat().st_mode) == 0o700
    finish(study)


def started_at(pid: int) -> float:
    """Return when a process has started; infinity if it has ended."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return math.inf


def _text_of(path: Path) -> str:
    """Return the text of a file; empty for a directory, for a temporary file that has gone, and for a process that has ended."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, IsADirectoryError, ProcessLookupError):
        return ""


def test_the_private_broker_refuses_clients_without_password(intruder):
    url = intruder.session.read_broker().url
    host, _, port = url.rpartition("@")[2].removesuffix("/0").partition(":")

    assert host == "127.0.0.1"
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(host=host, port=int(port), retry=Retry(NoBackoff(), 0)).ping()
    finish(intruder.study)


def test_an_error_in_the_worker_fails_the_step(run):
    """Given a manifest that no worker can read, then the step fails with an error in the log, and does not wait."""
    study = run(SPEC.replace("sleep 0.3", HOLD))
    study.await_text("sim/*/runs", "run", 2)
    intruder = Intruder(study)
    manifest = study.path / "merlin_info" / "records" / "sim" / "manifest.json"
    kept = manifest.read_text()
    manifest.write_text(kept.replace('"retry_delay_s"', '"no_such_field"'))
    kill(*study.processes("maestro_celery_plugin.worker"))  # the next worker reads the manifest again
    (study.path.parent / "go").touch()
    study.await_end()

    assert study.states()["sim"] == "FAILED"
    assert "(Object contains unknown field `no_such_field`)" in intruder.worker_log()
