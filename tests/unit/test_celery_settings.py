"""The block `celery` of Merlin's app.yaml: settings that a study takes, that it needs not, and that it refuses."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.broker.app import make_app
from maestro_celery_plugin.broker.choice import ENVIRONMENT_VARIABLE, choose
from maestro_celery_plugin.errors import BrokerError
from maestro_celery_plugin.study.session import BrokerLocation, Session


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)

    def choose_with(block: str, broker: str = "url: 'redis://h/0'"):
        (tmp_path / "app.yaml").write_text(f"broker: {{{broker}}}\ncelery: {block}\n")
        return choose(None)

    return choose_with


@pytest.mark.parametrize("block", ["", "{}", "{override: }", "{overrides: }", "{omit_queue_tag: False, queue_tag: '[merlin]_', override: }"])
def test_what_merlin_writes_itself_changes_nothing(chosen, block):
    assert (chosen(block).celery, chosen(block).notes) == ({}, ())


@pytest.mark.parametrize("name", ["override", "overrides"])
def test_settings_of_the_connection_reach_celery(chosen, tmp_path, name):
    """Given the block that Merlin reads, or the one that its template has, then workers and conductor use its settings."""
    choice = chosen(
        f"{{{name}: {{broker_heartbeat: 30, broker_connection_retry: true, broker_pool_limit: 3, "
        "broker_transport_options: {health_check_interval: 25, socket_connect_timeout: 9, visibility_timeout: 7200}}}"
    )
    session = Session.create(tmp_path / "session")
    session.write_broker(BrokerLocation(url=str(choice.url), celery=dict(choice.celery)))
    conf = make_app(session, 5.0).conf

    assert (conf.broker_heartbeat, conf.broker_pool_limit, conf.task_acks_late) == (30, 3, False)
    options = conf.broker_transport_options
    assert (options["health_check_interval"], options["socket_connect_timeout"]) == (25, 9)
    assert (options["socket_timeout"], options["ack_emulation"]) == (5.0, False)
    assert "visibility_timeout" not in options
    assert [note.partition("celery.")[2] for note in choice.notes] == [
        f"{name}.broker_transport_options.visibility_timeout has no effect here: a message is acknowledged before its "
        "samples run, so none is delivered again."
    ]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("task_acks_late: true", r"task_acks_late: found 'True', but .*: messages are acknowledged before their samples run"),
        ("task_serializer: pickle", r"task_serializer: found 'pickle', but .*: messages are signed JSON without code"),
        ("result_backend: 'redis://h'", r"result_backend: .*: the ledger of the study, and no result backend"),
        ("worker_prefetch_multiplier: 4", r"worker_prefetch_multiplier: .*: a worker takes a message only when it has a free slot"),
        ("worker_concurrency: 4", r"worker_concurrency: .*: set it for each worker group: merlin\.resources\.workers"),
        ("task_time_limit: 4", r"task_time_limit: .*: it would end a process in the middle of a sample"),
        ("worker_enable_remote_control: true", r"worker_enable_remote_control: .*: commands of the remote control have no signatures"),
        ("task_default_queue: q", r"task_default_queue: .*: this plugin names and declares the queues"),
        ("broker_url: 'redis://h'", r"broker_url: .*: the block 'broker' says it"),
        ("worker_timer: x", r"worker_timer: .*: this plugin sets it itself"),
        ("broker_connection_retry: false", r"broker_connection_retry: found 'False'; the value must be true: without it, a broker"),
        ("broker_heartbeat: often", r"broker_heartbeat: found 'often'; the value must be a number of seconds"),
        ("broker_hartbeat: 3", r"broker_hartbeat: Celery has no such setting; did you mean 'broker_heartbeat'"),
        ("nonsense: 3", r"nonsense: Celery has no such setting; correct or remove it"),
        ("broker_transport_options: {socket_timeout: 1}", r"broker_transport_options\.socket_timeout: .*: this plugin sets it itself"),
        ("broker_transport_options: {global_keyprefix: a}", r"broker_transport_options\.global_keyprefix: .*: this plugin names"),
        ("broker_transport_options: 3", r"broker_transport_options: found '3'"),
    ],
)
@pytest.mark.parametrize("name", ["override", "overrides"])
def test_a_setting_that_would_break_a_promise_is_refused(chosen, name, setting, problem):
    with pytest.raises(BrokerError, match=rf"^app\.yaml: celery\.{name}\.{problem}[^\n]*`--broker URL` and `--broker private` do not read this file\.$"):
        chosen(f"{{{name}: {{{setting}}}}}")


def test_the_prefix_of_queues_stays(chosen):
    notes = chosen("{omit_queue_tag: true}").notes
    assert notes == (
        "app.yaml: celery.omit_queue_tag: the queues of each study keep a prefix of their own, because workers run only "
        "what the key of their session has signed; `maestro run --session STUDY` shares workers on purpose.",
    )


@pytest.mark.parametrize(
    ("block", "problem"),
    [("[1]", r"celery: found '\[1\]'; a block"), ("{overide: {}}", "celery: unknown key 'overide'; did you mean 'override"), ("{override: 3}", r"celery\.override: found '3'; a block")],
)
def test_a_block_that_is_none_or_has_an_unknown_key_is_refused(chosen, block, problem):
    with pytest.raises(BrokerError, match=problem):
        chosen(block)


def test_certificates_may_lie_in_the_directory_of_merlin(chosen, tmp_path):
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates" / "ca.pem").touch()
    choice = chosen(f"{{certs: {tmp_path}/certificates}}", "name: rediss, server: h, ca_certs: ca.pem")
    assert str(choice.url).endswith("certificates%2Fca.pem")


def test_options_of_the_transport_are_for_redis(chosen):
    with pytest.raises(BrokerError, match=r"broker_transport_options\.socket_keepalive: found 'True', but the setting cannot be changed"):
        chosen("{override: {broker_transport_options: {socket_keepalive: true}}}", "url: 'amqp://h'")
