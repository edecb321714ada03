"""Brokers with TLS: each fault stops the launch with its own sentence; a study verifies its server and shows a certificate."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import pytest
from servers import PASSWORD, TlsServer, free_port, make_certificates, redis_tls_on, tls_server_with
from support import processes_of

from maestro_celery_plugin.broker.choice import BrokerChoice, check
from maestro_celery_plugin.errors import BrokerError


@pytest.fixture(params=["redis", "rabbitmq"])
def server(request) -> TlsServer:
    if request.param == "redis":
        return request.getfixturevalue("redis_tls_server")
    return request.getfixturevalue("rabbitmq_server").tls


def fault(url: str) -> str:
    """Return the message of the check of a URL: one line without the password."""
    with pytest.raises(BrokerError) as caught:
        check(BrokerChoice(url, "--broker"))
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    assert "wr0ng" not in text
    assert re.search(r":\*\*\*@\w[\w.]+:\d+\S* \(from --broker\) cannot be used: .* Or use a private broker: --broker private\.$", text)
    return text


def test_a_server_is_verified_and_a_client_shows_its_certificate(server):
    check(BrokerChoice(server.url(ca_certs="ca.pem"), "--broker"))
    check(BrokerChoice(server.url(ca_certs="ca.pem", host="localhost", check_hostname="false"), "--broker"))
    check(BrokerChoice(server.url(ca_certs="other.pem", cert_reqs="CERT_NONE"), "--broker"))


def test_each_fault_of_a_certificate_or_a_login_has_its_own_sentence(server):
    right = server.url(ca_certs="ca.pem")
    assert "no certificate authority that you trust has signed its certificate" in fault(server.url(ca_certs="other.pem"))
    assert "no certificate authority that you trust has signed its certificate" in fault(server.url(cert_reqs="required"))
    assert "its certificate is not for the host 'localhost'" in fault(server.url(ca_certs="ca.pem", host="localhost"))
    with tls_server_with("expired", server.files) as port:
        assert "its certificate has expired." in fault(server.url(port, ca_certs="ca.pem"))
    assert "it refuses the user or the password" in fault(server.url(ca_certs="ca.pem", password="wr0ng"))
    assert "it wants a certificate of its clients. Set 'certfile'" in fault(server.url(ca_certs="ca.pem", certificate=""))
    for certificate in ("stranger", "expired"):
        assert "it does not accept the client certificate" in fault(server.url(ca_certs="ca.pem", certificate=certificate))
    place = r"the virtual host 'nowhere' does not exist|it has no database '99'"
    assert re.search(place, fault(right.replace("/%2F?", "/nowhere?").replace("/0?", "/99?")))


def test_a_port_without_tls_and_a_url_without_tls_are_named(server):
    assert f"its port {server.plain_port} speaks no TLS" in fault(server.url(server.plain_port, ca_certs="ca.pem"))
    without = re.sub(r"s(://.*)\?.*", r"\1", server.url())
    assert re.search(rf"its port {server.port} speaks TLS only\. Use the scheme '(rediss|amqps)'\.", fault(without))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"ca_cert": "ca.pem"}, "unknown key 'ssl_ca_cert' in its URL; did you mean 'ssl_ca_certs'"),
        ({"cert_reqs": "requird"}, "'ssl_cert_reqs' is 'requird' in its URL; did you mean 'required'"),
        ({"check_hostname": "no"}, "'ssl_check_hostname' is 'no' in its URL; allowed: 'true', 'false'"),
        ({"ca_certs": "nowhere.pem"}, "nowhere.pem' (ca_certs) is not a file"),
        ({"ca_certs": "client.key"}, "client.key' (ca_certs) has no certificates in PEM form"),
        ({"keyfile": "server.key"}, "are not a certificate and its key (key values mismatch)"),
        ({"certfile": "locked.key", "keyfile": "locked.key"}, "is encrypted, and nobody can type its password"),
        ({"certificate": "", "keyfile": "client.key"}, "a key needs its certificate; add 'ssl_certfile'"),
    ],
)
def test_a_tls_key_of_a_url_that_cannot_be_used_is_named(redis_tls_server, keys, problem):
    assert problem in fault(redis_tls_server.url(**keys))
    assert problem in fault(redis_tls_server.url(**keys).replace("rediss://", "amqps://user"))


def test_tls_keys_in_a_url_without_tls_are_refused(redis_tls_server):
    for scheme in ("redis", "amqp"):
        url = redis_tls_server.url(ca_certs="ca.pem").replace("rediss://", f"{scheme}://u")
        assert "'ssl_certfile' needs a URL with TLS, which begins with 'rediss' or 'amqps'" in fault(url)


WAITING = """
    description: {name: waiting, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "env > environment; while test ! -e $(SPECROOT)/go; do sleep 0.1; done; echo $(A)"}
    merlin:
      resources:
        workers:
          w: {args: --concurrency 2, steps: [all]}
      samples:
        generate: {cmd: "seq 1 6 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def configure(environment, url: str) -> None:
    path = Path(environment["HOME"], ".config", "maestro-celery", "config.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(f"broker: {url}\n")
    path.chmod(0o600)


def places_of_password(study) -> list[str]:
    """Return the processes and files that have the password, other than private files of the session."""
    places = []
    for process in processes_of(str(study.path)):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended, as the `sleep` of a loop
                if PASSWORD in Path(f"/proc/{process}/{name}").read_text("latin-1"):
                    places.append(f"{name} of {process}")
    for path in (path for path in study.path.rglob("*") if path.is_file()):
        with contextlib.suppress(FileNotFoundError):  # a temporary file that has gone
            is_private = path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
            if PASSWORD in path.read_text("latin-1") and not is_private:
                places.append(str(path))
    return places


def test_no_password_in_a_process_a_log_or_a_file_that_others_can_read(run, server, environment):
    """Given a broker of the user's configuration with TLS, then only private files of the session have its password."""
    configure(environment, server.url(ca_certs="ca.pem"))
    study = run(WAITING)
    shown = study.command("maestro-celery", "config").stdout
    assert "it answers, with TLS; its certificate and its host name are verified" in shown
    assert PASSWORD not in shown
    study.await_text("sim/*/environment", "PATH=")
    places = places_of_password(study)
    (study.path.parent / "go").touch()
    study.await_end()

    assert places == []
    assert places_of_password(study) == []
    assert PASSWORD not in study.output
    assert study.outputs("sim/*/sim.out") == [f"{n}\n" for n in range(1, 7)]
    assert PASSWORD in (study.path / "merlin_info" / "session" / "broker.json").read_text()


def test_a_server_with_tls_that_is_started_again_costs_no_sample(run, tmp_path, environment):
    """Given a Redis server with TLS that loses its data, then the study continues, and no log has the password."""
    directory, port = tmp_path / "tls", free_port()
    directory.mkdir()
    make_certificates(directory)
    with redis_tls_on(directory, port, free_port()) as server:
        configure(environment, server.url(ca_certs="ca.pem").replace("rediss", "valkeys"))
        study = run(WAITING)
        study.await_text("sim/*/environment", "PATH=", count=2)
    (study.path.parent / "go").touch()
    study.await_text("sim/*/*.out", "\n", count=2)
    with redis_tls_on(directory, port, free_port()):
        study.await_end()

    assert study.outputs("sim/*/sim.out") == [f"{n}\n" for n in range(1, 7)]
    assert places_of_password(study) == []
    shutil.rmtree(directory)
