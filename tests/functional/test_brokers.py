"""Studies with a broker by URL: Redis and RabbitMQ."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
import redis
from servers import LIMITED, PASSWORD, Server, TlsServer, free_port, redis_on
from support import BIN, ROOT

from maestro_celery_plugin.broker.app import declare, make_app, queue_sizes
from maestro_celery_plugin.broker.choice import BrokerChoice, check, check_reachable, choose
from maestro_celery_plugin.broker.messages import RangeTask
from maestro_celery_plugin.broker.sender import Sender
from maestro_celery_plugin.errors import BrokerError, BrokerUnavailableError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import LedgerReader, read_ledger
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.session import BrokerLocation, Session


@pytest.fixture(params=["redis", "rabbitmq"])
def server(request) -> Server:
    return request.getfixturevalue(f"{request.param}_server")


def test_a_study_over_a_broker_by_url(run, server):
    study = run(ROOT / "specs" / "hello_samples.yaml", "--broker", server.url).await_end()

    assert set(study.states().values()) == {"FINISHED"}
    assert study.outputs("count/*.out") == ["20\n"]
    assert not list(study.path.glob("**/broker.conf")), "the plugin has started a private broker"


def test_a_broker_from_the_environment(run, server, environment):
    environment["MAESTRO_CELERY_BROKER_URL"] = server.url

    study = run((ROOT / "specs" / "hello_samples.yaml").read_text().replace("wc -l", "env > environment; wc -l"))
    study.await_end()

    assert study.outputs("count/*.out") == ["20\n"]
    assert not list(study.path.glob("**/broker.conf"))
    with_password = [path for path in study.path.rglob("*") if path.is_file() and PASSWORD in path.read_text("latin-1")]
    assert with_password == [study.path / "merlin_info" / "session" / "broker.json"]


ELSEWHERE = """
    description: {name: elsewhere, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "env > environment; while test ! -e $(SPECROOT)/go; do sleep 0.1; done"}
    merlin:
      resources:
        workers:
          w: {machines: [elsewhere], steps: [all]}
"""


def test_the_url_in_the_environment_stays_in_no_process(run, redis_server, environment):
    """Given the variable in the environment of `maestro run` and of `maestro-celery workers`, then samples do not have it."""
    environment["MAESTRO_CELERY_BROKER_URL"] = redis_server.url
    study = run(ELSEWHERE)
    command = [str(BIN / "maestro-celery"), "workers", str(study.path), "--group", "w"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as workers:
        study.await_text("sim/environment", "PATH=")

        assert environment_of(workers.pid)
        for process in (*study.processes(), workers.pid):
            assert PASSWORD not in environment_of(process), study.processes()
        assert PASSWORD not in study.outputs("sim/environment")[0]

        (study.path.parent / "go").touch()
        study.await_end()
    assert set(study.states().values()) == {"FINISHED"}


def environment_of(process: int) -> str:
    """Return the environment of a process; empty for one that has ended, as the `sleep` of a loop may have."""
    try:
        return Path(f"/proc/{process}/environ").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_broker_from_the_configuration_of_merlin(run, redis_server, environment):
    port = redis_server.url.rpartition(":")[2].partition("/")[0]
    merlin = Path(environment["HOME"], ".merlin")
    merlin.mkdir()
    (merlin / "redis.pass").write_text(PASSWORD + "\n")
    (merlin / "app.yaml").write_text(
        f"broker:\n  name: redis\n  server: 127.0.0.1\n  port: {port}\n  password: {merlin / 'redis.pass'}\n  db_num: 1\n"
    )
    study = run(ROOT / "specs" / "hello_samples.yaml").await_end()

    assert study.outputs("count/*.out") == ["20\n"]
    assert not list(study.path.glob("**/broker.conf"))


@pytest.fixture(params=["redis", "rabbitmq"])
def tls_server(request) -> TlsServer:
    if request.param == "redis":
        return request.getfixturevalue("redis_tls_server")
    return request.getfixturevalue("rabbitmq_server").tls


def test_a_study_over_tls_with_the_keys_of_merlin(run, tls_server, environment):
    """Given a server that wants a certificate, then launch, conductor and workers show it, and verify that of the server."""
    merlin = Path(environment["HOME"], ".merlin")
    merlin.mkdir()
    (merlin / "app.yaml").write_text(tls_server.broker(ca_certs=str(tls_server.files / "ca.pem")))

    study = run(ROOT / "specs" / "hello_samples.yaml").await_end()

    assert study.outputs("count/*.out") == ["20\n"]
    assert not list(study.path.glob("**/broker.conf"))
    # A worker that has not seen its messages is replaced by another one.
    logs = [path.stem for path in (study.path / "merlin_info" / "workers").glob("*.log")]
    assert logs
    assert all(name.endswith("-1") for name in logs), logs


@pytest.mark.parametrize(
    ("keys", "is_usable"),
    [
        ({"ca_certs": "ca.pem"}, True),
        ({"ca_certs": "ca.pem", "cert_reqs": "required"}, True),
        ({"ca_certs": "other.pem", "cert_reqs": "required"}, False),
        ({"ca_certs": "other.pem"}, False),
        ({"cert_reqs": "required"}, False),
        ({"cert_reqs": "none"}, True),
        ({"ca_certs": "ca.pem", "certfile": None, "keyfile": None}, False),
        ({"ca_certs": "ca.pem", "certfile": "server.csr"}, False),
    ],
)
def test_the_tls_keys_of_merlin_are_obeyed(tls_server, tmp_path, monkeypatch, keys, is_usable):
    """Given certificates that the keys allow or forbid, then the check of the broker before the launch says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAESTRO_CELERY_BROKER_URL", raising=False)
    files = {key: value if key == "cert_reqs" or value is None else str(tls_server.files / value) for key, value in keys.items()}
    Path("app.yaml").write_text(tls_server.broker(**files))
    if is_usable:
        check(choose(None))
    else:
        with pytest.raises(BrokerError, match=r":\*\*\*@127\.0\.0\.1.*cannot be used: .*--broker private"):
            check(choose(None))


def test_a_wrong_password_stops_the_launch(run, server):
    study = run(ROOT / "specs" / "hello.yaml", "--broker", server.wrong_url)

    assert study.code == 1
    assert "cannot be used" in study.output
    assert "wrong" not in study.output.replace("wrong number", "").replace("WRONGPASS", "")
    assert "Traceback" not in study.output
    assert not study.path.exists()


def test_a_user_without_permission_for_task_queues_stops_the_launch(server):
    """Given a user who may log in, then the check before the launch sends a message, which the server refuses."""
    check(BrokerChoice(server.url, "--broker"))
    limited = server.url.replace("tester:", ":").replace("//:", f"//{LIMITED}:")
    with pytest.raises(BrokerError, match=r"cannot be used: the user may not use task queues \(.*\)\. Ask its administrator"):
        check(BrokerChoice(limited, "--broker"))


def test_a_replica_that_is_read_only_stops_the_launch(redis_server):
    client = redis.Redis.from_url(redis_server.url)
    client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(BrokerError, match=r"cannot be used: it is a read-only replica\. Use the URL of the primary server"):
            check(BrokerChoice(redis_server.url, "--broker"))
    finally:
        client.replicaof("no", "one")


def test_a_cluster_stops_the_launch(tmp_path):
    with (
        redis_on(free_port(), tmp_path, f"cluster-enabled yes\ncluster-port {free_port()}") as url,
        pytest.raises(BrokerError, match=r"cannot be used: it is a Redis Cluster, which Celery does not support\. Use a single"),
    ):
        check(BrokerChoice(url, "--broker"))


def test_a_broker_at_a_socket(run, redis_server, environment):
    """Given Merlin's broker `redis+socket`, then the study uses the socket, which may have a password in a URL."""
    directory = redis.Redis.from_url(redis_server.url).config_get("dir")["dir"]
    environment["MAESTRO_CELERY_BROKER_URL"] = f"redis+socket://:{PASSWORD}@{directory}/socket?virtual_host=2"
    study = run(ROOT / "specs" / "hello_samples.yaml").await_end()

    assert study.outputs("count/*.out") == ["20\n"]
    assert not list(study.path.glob("**/broker.conf"))


def test_a_worker_can_tell_a_wrong_password_from_a_server_that_is_away(tmp_path, server):
    """Given a server that refuses the password, then a worker need not wait for it."""
    session = Session.create(tmp_path / "session")
    session.write_broker(BrokerLocation(url=server.url))
    check_reachable(session, "here")

    session.write_broker(BrokerLocation(url=server.wrong_url))
    with pytest.raises(BrokerError, match=r"refuses the connection from here: .* has the option --broker") as error:
        check_reachable(session, "here")
    assert not isinstance(error.value, BrokerUnavailableError)
    assert ":wrong@" not in str(error.value)


def test_a_server_that_does_not_answer_stops_the_launch(run, environment):
    """Given a server that accepts connections and does not answer, then the launch ends with an error."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for scheme in ("redis", "amqp"):
            study = run(ROOT / "specs" / "hello.yaml", "--broker", f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/")
            assert study.code == 1
            assert "cannot be used" in study.output
            assert not study.path.exists()


@pytest.mark.parametrize("words", [["maestro", "run", "-y", str(ROOT / "specs" / "hello.yaml")], ["maestro-celery", "doctor"]])
@pytest.mark.parametrize("form", ["--broker URL", "--broker=URL"])
def test_the_password_of_the_option_leaves_the_process_list(environment, tmp_path, words, form):
    """Given a command that waits for its broker, then the process list has no password any more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/0"
        command = [str(BIN / words[0]), *words[1:], *form.replace("URL", url).split()]
        with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            line = Path(f"/proc/{process.pid}/cmdline").read_text()
            process.kill()
            connection.close()
    assert "--broker" in line
    assert "*****" in line
    assert PASSWORD not in line


def test_a_study_removes_only_its_own_keys_from_a_shared_broker(run, redis_server):
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    client.set("other-user", "key")

    run(ROOT / "specs" / "hello_samples.yaml", "--broker", redis_server.url).await_end()

    keys = {key.decode() for key in client.scan_iter()}
    assert keys == {"other-user"}


LONG = """
    description: {name: long, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "HOLD; echo $(A)"}
    merlin:
      resources:
        overlap: True
        workers:
          a: {args: --concurrency 2, steps: [all]}
          b: {args: --concurrency 2, steps: [all]}
      samples:
        generate: {cmd: "seq 1 12 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def test_workers_share_the_samples(run, server):
    """Given two workers with two slots and long samples, then all slots have a sample in each round, and none is sent twice."""
    # However slow a worker is, no sample ends before its whole round has begun. The samples take more than a second, so
    # that a slot takes one after the other.
    number = "for n in $(seq 12); do mkdir $(SPECROOT)/$n 2> /dev/null && break; done"
    hold = f"{number}; until [ -e $(SPECROOT)/$(( (n + 3) / 4 * 4 )) ]; do sleep 0.1; done; sleep 1.5"
    study = run(LONG.replace("HOLD", hold), "--broker", server.url).await_end()

    entries = read_ledger(study.path / "merlin_info" / "ledger")
    shares = [int((entries_of(study, name)["kind"] == Kind.STARTED).sum()) for name in ("a-1", "b-1")]
    assert shares == [6, 6]
    assert (entries["kind"] == Kind.SENT).sum() == 1


def entries_of(study, writer: str):
    return dict(LedgerReader(study.path / "merlin_info" / "ledger").poll())[writer]


def test_a_broker_by_url_that_loses_its_data(run, redis_server):
    hold = "until test -e $(SPECROOT)/go; do sleep 0.1; done"
    study = run(LONG.replace("HOLD", hold), "--broker", redis_server.url)
    study.await_text("sim/*/*.sh", count=3)

    redis.Redis.from_url(redis_server.url).flushall()
    (study.path.parent / "go").touch()
    study.await_end()

    assert study.outputs("sim/*/sim.out") == [f"{n}\n" for n in range(1, 13)]


def test_a_broker_that_comes_back_at_its_address_is_used_again(tmp_path):
    """Given a message and queues that the broker did not take, when it is back, then another try of the same process succeeds."""
    session, port = Session.create(tmp_path / "session"), free_port()
    session.write_broker(BrokerLocation(url=f"redis://:{PASSWORD}@127.0.0.1:{port}/0"))
    app, task = make_app(session), RangeTask("/study", "id", "sim", 1, 0, 3, 1, RunMode.FIRST)
    sender = Sender(session, app)
    with pytest.raises(Exception, match="Connection refused"):
        sender.send(task, "q")
    with pytest.raises(Exception, match="Connection refused"):
        declare(app, session, {"q"})

    with redis_on(port, tmp_path):
        declare(make_app(session), session, {"q"})
        sender.send(task, "q")
        assert queue_sizes(app, [session.queue("q")]) == [1]
