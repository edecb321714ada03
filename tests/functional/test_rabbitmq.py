"""RabbitMQ: its acknowledgement limit, and quorum queues."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import amqp
import pytest
import yaml
from kombu import Connection
from servers import ACK_LIMIT_S, QUORUM, Server
from support import ROOT

# Longer than the limit. The limit is also one for the time that a busy machine needs for an acknowledgement.
SAMPLE_S = ACK_LIMIT_S + 2
LONG = """
    description: {name: long, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "sleep SAMPLE_S; echo $(A)"}
      - name: post
        description: d
        run: {cmd: "cat $(sim.workspace)/*/sim.out | sort -n", depends: [sim_*]}
    merlin:
      resources:
        overlap: True
        workers:
          a: {args: --concurrency 2, steps: [all]}
          b: {args: --concurrency 1 --pool prefork, steps: [all]}
      samples:
        generate: {cmd: "seq 1 6 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def await_refusal(url: str) -> None:
    """Receive a message without an acknowledgement, until the server closes the channel."""
    with Connection(url) as connection:
        channel, name = connection.default_channel, f"control-{uuid.uuid4()}"
        channel.queue_declare(name)
        channel.basic_publish(channel.prepare_message("x", content_type="text/plain", content_encoding="utf-8"), routing_key=name)
        channel.basic_consume(name, no_ack=False, callback=lambda message: None)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                continue


def test_samples_may_take_longer_than_the_acknowledgement_limit(run, rabbitmq_server: Server):
    """Given samples that take longer than the limit, more than slots, then no message waits unacknowledged."""
    study = run(LONG.replace("SAMPLE_S", str(SAMPLE_S)), "--broker", rabbitmq_server.url).await_end()

    assert study.outputs("post/post.out") == ["1\n2\n3\n4\n5\n6\n"]
    assert [len(path.read_text().splitlines()) for path in study.path.glob("sim/*/sim.out")] == [1] * 6
    logs = "".join(study.outputs("merlin_info/workers/*.log")) + study.log()
    assert "PRECONDITION" not in logs and "onnection" not in logs, logs
    with pytest.raises(amqp.PreconditionFailed, match="delivery acknowledgement"):  # the server has this limit
        await_refusal(rabbitmq_server.url)


def test_the_queues_of_a_virtual_host_may_be_quorum_queues(run, rabbitmq_server: Server):
    url = rabbitmq_server.url.removesuffix("//") + f"/{QUORUM}"
    study = run(LONG.replace("SAMPLE_S", "0.2"), "--broker", url).await_end()

    assert study.outputs("post/post.out") == ["1\n2\n3\n4\n5\n6\n"], study.outputs("merlin_info/workers/*.log")
    logs = "".join(study.outputs("merlin_info/workers/*.log")) + study.log()
    assert "onnection" not in logs and "global" not in logs, logs


def test_a_client_certificate_may_be_the_login(run, rabbitmq_server: Server, environment):
    """Given Merlin's app.yaml with `broker_login_method: EXTERNAL`, then the certificate names the user, without a password."""
    tls = rabbitmq_server.tls
    merlin = Path(environment["HOME"], ".merlin")
    merlin.mkdir()
    settings = yaml.safe_dump({"celery": {"overrides": {"broker_login_method": "EXTERNAL", "broker_heartbeat": 30}}})
    block = tls.broker(ca_certs=f"{tls.files}/ca.pem", password=None)
    (merlin / "app.yaml").write_text(block)
    assert "it refuses the user or the password" in run(ROOT / "specs" / "hello.yaml").output

    (merlin / "app.yaml").write_text(block + settings)
    study = run(ROOT / "specs" / "hello_samples.yaml").await_end()
    assert study.outputs("count/*.out") == ["20\n"]
    assert json.loads((study.path / "merlin_info/session/broker.json").read_text())["celery"]["broker_login_method"] == "EXTERNAL"
