"""The choice of a broker: the priority of its sources, its URL, and messages without its password."""

from __future__ import annotations

import re
import ssl

import pytest

from maestro_celery_plugin.broker.choice import ENVIRONMENT_VARIABLE, BrokerChoice, check, choose, masked
from maestro_celery_plugin.broker.tls import encryption_of, for_celery
from maestro_celery_plugin.errors import BrokerError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """The home and working directory of a user without a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path


def test_the_option_has_priority_then_the_environment_then_the_file(home, monkeypatch):
    assert choose(None).url is None
    (home / "app.yaml").write_text("broker: {url: 'redis://file'}")
    assert choose(None).url == "redis://file"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "redis://environment")
    assert choose(None).url == "redis://environment"
    assert choose("redis://option").url == "redis://option"


@pytest.mark.parametrize(
    ("block", "url"),
    [
        ("{name: redis, server: h}", "redis://h:6379/0"),
        ("{name: rediss, server: h, port: 7, db_num: 3, password: 'a/b@c'}", "rediss://:a%2Fb%40c@h:7/3"),
        ("{name: rabbitmq, server: h, password: p}", "amqps://ada:p@h:5671/ada"),
        ("{name: rabbitmq, server: h, username: u, password: p, vhost: /v}", "amqps://u:p@h:5671/%2Fv"),
        ("{name: amqp, server: h, username: u, password: p, port: 7}", "amqp://u:p@h:7/ada"),
        ("{name: RabbitMQ, server: h, password: p}", "amqps://ada:p@h:5671/ada"),
        ("{name: amqp, server: h, password: 'p%40q', vhost: '%2Fv'}", "amqp://ada:p%40q@h:5672/%2Fv"),
        ("{name: redis, server: h, password: ' p '}", "redis://:p@h:6379/0"),
        ("{name: amqps, server: h, username: u, password: p, vhost: v}", "amqps://u:p@h:5671/v"),
        ("{name: redis, server: '[::1]', password: x}", "redis://:x@%3A%3A1:6379/0"),
        ("{name: redis+socket, path: /s}", "redis+socket:///s?virtual_host=0"),
    ],
)
def test_the_broker_block_of_merlin_gives_the_url(home, block, url):
    (home / "app.yaml").write_text(f"broker: {block}")
    assert choose(None).url == url


def test_the_password_of_merlin_may_be_in_a_file(home):
    (home / "secret").write_text("zigzag\n")
    (home / "app.yaml").write_text(f"broker: {{name: redis, server: h, password: '{home}/secret'}}")
    assert choose(None).url == "redis://:zigzag@h:6379/0"


@pytest.mark.parametrize("password", ["/zigzag/none", "~/zigzag", "../zigzag"])
def test_the_file_of_a_password_must_exist(home, password):
    """Given a value that looks like a path, then it is not taken for the password; and it is not shown, if it is one."""
    (home / "app.yaml").write_text(f"broker: {{name: redis, server: h, password: '{password}'}}")
    with pytest.raises(BrokerError, match=r"app\.yaml: broker\.password: its value is a path, but there is no such file;") as error:
        choose(None)
    assert "zigzag" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "hint"), [("rabitmq", r"found 'rabitmq'; did you mean 'rabbitmq'\?"), ("kafka", "found 'kafka'; allowed: 'amqp', .*'rabbitmq'")]
)
def test_the_name_of_the_broker_of_merlin_is_checked(home, name, hint):
    (home / "app.yaml").write_text(f"broker: {{name: {name}, server: h}}")
    with pytest.raises(BrokerError, match=rf"app\.yaml: broker\.name: {hint}"):
        choose(None)


def test_a_misspelt_scheme_has_a_hint():
    with pytest.raises(BrokerError, match=r"needs one of the schemes redis, .*; did you mean 'redis'\? Correct the URL\."):
        check(BrokerChoice("redi://h", "--broker"))


@pytest.mark.parametrize("given", ["secret", "~/.merlin/secret", ".merlin/secret"])
def test_a_password_file_of_merlin_may_have_further_lines_and_lie_in_its_directory(home, monkeypatch, given):
    (home / ".merlin").mkdir()
    (home / ".merlin" / "secret").write_text("zigzag\nsecond line\n")
    (home / "app.yaml").write_text(f"broker: {{name: redis, server: h, password: {given}}}")
    assert choose(None).url == "redis://:zigzag@h:6379/0"


def test_the_directory_of_certificates_has_password_files_and_those_that_are_not_at_their_path(home):
    """Given `celery.certs`, then a file is looked for by its name there, as in Merlin."""
    (home / "certs").mkdir()
    (home / "certs" / "secret").write_text("zigzag")
    (home / "certs" / "ca.pem").touch()
    (home / "app.yaml").write_text(
        "broker: {name: rediss, server: h, password: secret, ca_certs: /elsewhere/ca.pem}\ncelery: {certs: certs}"
    )
    url = choose(None).url
    assert url.startswith("rediss://:zigzag@h:6379/0?")
    assert url.endswith("certs%2Fca.pem")


def test_a_password_may_be_longer_than_a_path(home):
    (home / "app.yaml").write_text(f"broker: {{name: redis, server: h, password: {'z' * 5000}}}")
    assert choose(None).url == f"redis://:{'z' * 5000}@h:6379/0"


@pytest.mark.parametrize("text", ["", "broker: {}", "broker: [1]", "{", "broker: {name: redis, server: }"])
def test_a_broker_block_that_cannot_be_used_is_an_error(home, text):
    (home / "app.yaml").write_text(text)
    with pytest.raises(BrokerError, match=r"app\.yaml: no usable broker block \(.*\); correct it, or set a broker with"):
        choose(None)


def test_a_configuration_of_merlin_that_cannot_be_read_is_one_line(home, monkeypatch):
    (home / "app.yaml").write_bytes(b"broker: \xff")
    with pytest.raises(BrokerError, match=r"app\.yaml: no usable broker block \(UnicodeDecodeError"):
        choose(None)

    def fail(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.is_file", fail)
    with pytest.raises(BrokerError, match=r"Merlin's app\.yaml cannot be looked for: .*Permission denied.* set a broker with --broker URL or --broker private\."):
        choose(None)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:zigzag@host:1/0", "redis://:***@host:1/0"),
        ("amqp://user:zigzag@host:1/v", "amqp://user:***@host:1/v"),
        ("redis://:zig%40zag@host/0", "redis://:***@host/0"),
        ("redis://:zig@zag@host/0", "redis://:***@host/0"),
        ("redis://:zig/zag@host/0", "redis://:***@host/0"),
        ("redis://:zig#zag@host/0", "redis://:***@host/0"),
        ("redis://:zig?zag@host/0", "redis://:***@host/0"),
        ("redis://:1/zigzag@host:6379/0", "redis://:***@host:6379/0"),
        ("amqp://user:zigzag@host:99999/my%2Fvhost", "amqp://user:***@host:99999/my%2Fvhost"),
        ("redis://:zigzag@[::1]:1/3?ssl_cert_reqs=required", "redis://:***@[::1]:1/3?ssl_cert_reqs=required"),
        ("redis+socket:///path?virtual_host=0", "redis+socket:///path?virtual_host=0"),
        ("redis://us/er:zigzag@host/0", "redis://us/er:***@host/0"),
        ("redis://us@er:zigzag@host/0", "redis://us@er:***@host/0"),
        ("redis://:zig\nzag@host/0", "redis://:***@host/0"),
        ("redis://host/0?password=zigzag&x=1", "redis://host/0?password=***&x=1"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert masked(url) == shown
    assert "zag" not in masked(url)


@pytest.mark.parametrize("url", ["redis", "amqp", "http://host", "REDISS", ""])
def test_a_url_without_a_supported_scheme_is_refused(url):
    with pytest.raises(BrokerError, match=r"cannot be used: the URL needs one of the schemes redis, .*\. Correct the URL\."):
        check(BrokerChoice(url, "--broker"))


@pytest.mark.parametrize("url", ["redis://h:abc/0", "redis://:p@h:70000/0", "redis://[::1/0", "amqps://u:p@h:x/v"])
def test_a_url_with_an_invalid_port_is_refused(home, url):
    with pytest.raises(BrokerError, match=r"cannot be used: the host or the port in its URL is invalid; .*--broker private"):
        check(BrokerChoice(url, "--broker"))
    (home / "app.yaml").write_text(f"broker: {{url: '{url}'}}")
    with pytest.raises(BrokerError, match=r"\(from app\.yaml\) cannot be used: the host or the port"):
        check(choose(None))


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ("username: <username>", "broker.username: found the placeholder '<username>' of Merlin's template;"),
        ("password: <path to redis password file>", "broker.password: found the placeholder '<path to redis password file>'"),
        ("port: <server port>", "broker.port: found the placeholder '<server port>' of Merlin's template; replace it"),
        ("port: 63790x", "broker.port: found '63790x'; a number from 1 to 65535 is needed"),
        ("port: 70000", "broker.port: found '70000'; a number from 1 to 65535 is needed"),
    ],
)
def test_a_template_of_merlin_that_is_not_filled_in_is_refused(home, block, found):
    """Given the app.yaml that `merlin config create` writes, then the message says what to fill in."""
    (home / "app.yaml").write_text(f"broker: {{name: redis, server: h, {block}}}")
    with pytest.raises(BrokerError, match=rf"app\.yaml: {re.escape(found)}.*--broker private"):
        choose(None)


def test_a_password_may_be_in_angle_brackets(home):
    (home / "app.yaml").write_text("broker: {name: redis, server: h, password: <zigzag>}")
    assert choose(None).url == "redis://:%3Czigzag%3E@h:6379/0"


def test_the_scheme_may_have_capital_letters():
    with pytest.raises(BrokerError, match="refused"):
        check(BrokerChoice("REDIS://127.0.0.1:1/0", "--broker"))


@pytest.mark.parametrize("password", ["zig/zag", "zig?zag", "zig#zag", "zig@x/zag", "zig:/zag", "/zigzag", "zig/za:g"])
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_no_message_shows_a_part_of_a_password(scheme, password):
    """Given a password whose characters are not encoded, then its parts are not taken for the host or the port."""
    with pytest.raises(BrokerError, match="write %2F for '/'") as caught:
        check(BrokerChoice(f"{scheme}://user:{password}@127.0.0.1:1/0", "--broker"))
    assert "zig" not in str(caught.value)
    assert "za" not in str(caught.value).partition(" cannot be used")[0]


@pytest.mark.parametrize("password", ["zig@zag", "zig:zag", "zig%2Fzag", "zig%40zag", "zig%zag", "zig zag"])
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_no_error_of_a_library_shows_the_password(scheme, password):
    with pytest.raises(BrokerError, match="refused") as caught:
        check(BrokerChoice(f"{scheme}://user:{password}@127.0.0.1:1/0", "--broker"))
    assert "zig" not in str(caught.value)


@pytest.mark.parametrize(("url", "chosen"), [("valkey://h/0", "redis://h/0"), ("valkeys://h", "rediss://h"), ("amqp://valkey://", "amqp://valkey://")])
def test_valkey_is_reached_as_redis(url, chosen):
    assert choose(url).url == chosen


# --- TLS ---------------------------------------------------------------------------------------------


@pytest.fixture
def pem(home):
    for name in ("ca.pem", "c.pem", "k.pem"):
        (home / name).touch()
    return home


@pytest.mark.parametrize(
    ("block", "query"),
    [
        ("name: rediss, cert_reqs: none", "ssl_cert_reqs=none"),
        ("name: rediss, ca_certs: ca.pem", "ssl_cert_reqs=required&ssl_ca_certs={0}%2Fca.pem"),
        (
            "name: rediss, ca_certs: ./ca.pem, certfile: c.pem, keyfile: k.pem, cert_reqs: required",
            "ssl_cert_reqs=required&ssl_ca_certs={0}%2Fca.pem&ssl_certfile={0}%2Fc.pem&ssl_keyfile={0}%2Fk.pem",
        ),
    ],
)
def test_the_tls_keys_of_merlin_become_a_query(pem, block, query):
    (pem / "app.yaml").write_text(f"broker: {{server: h, {block}}}")
    assert choose(None).url == f"rediss://h:6379/0?{query.format(str(pem).replace('/', '%2F'))}"


def test_a_file_may_lie_beside_the_configuration_of_merlin(home):
    (home / ".merlin").mkdir()
    (home / ".merlin" / "ca.pem").touch()
    (home / ".merlin" / "app.yaml").write_text("broker: {name: rediss, server: h, ca_certs: ca.pem}")
    assert "%2F.merlin%2Fca.pem" in choose(None).url


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ("name: rediss, ca_cert: ca.pem", r"broker: unknown key 'ca_cert'; did you mean 'ca_certs'\?"),
        ("name: rediss, ssl_protocol: TLSv1", "broker: the key 'ssl_protocol' has no effect here"),
        ("name: rediss, ca_certs: nowhere.pem", r"broker\.ca_certs: 'nowhere\.pem' is not a file"),
        ("name: rediss, cert_reqs: requird", r"broker\.cert_reqs: found 'requird'; did you mean 'required'\?"),
        ("name: rediss, keyfile: k.pem", r"broker\.keyfile: a key needs its certificate; add 'certfile'"),
        ("name: redis, ca_certs: ca.pem", r"broker\.ca_certs: this broker has no TLS; use the name 'rediss'"),
        ("name: redis, cert_reqs: required", r"broker\.cert_reqs: this broker has no TLS"),
        ("url: 'amqp://h', ca_certs: ca.pem", r"broker\.ca_certs: this broker has no TLS"),
    ],
)
def test_a_tls_key_that_would_have_no_effect_is_refused(pem, block, found):
    (pem / "app.yaml").write_text(f"broker: {{server: h, {block}}}")
    with pytest.raises(BrokerError, match=rf"app\.yaml: {found}.*--broker private"):
        choose(None)


def test_a_server_of_merlin_without_tls_says_that_it_needs_no_certificate(home):
    (home / "app.yaml").write_text("broker: {name: redis, server: h, cert_reqs: none}")
    assert choose(None).url == "redis://h:6379/0"


def test_rabbitmq_gets_the_keys_in_an_argument(pem):
    (pem / "app.yaml").write_text("broker: {name: rabbitmq, server: h, password: p, ca_certs: ca.pem}")
    url, options = for_celery(choose(None).url)
    assert url == "amqps://ada:p@h:5671/ada"
    assert options == {"ca_certs": str(pem / "ca.pem"), "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "h"}
    assert for_celery("amqps://h?ssl_cert_reqs=none&a=1") == ("amqps://h?a=1", {"cert_reqs": ssl.CERT_NONE})
    for other in ("amqps://h", "rediss://h?ssl_cert_reqs=required"):
        assert for_celery(other) == (other, None)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h", "without TLS"),
        ("rediss://h", "with TLS, but its certificate is not verified"),
        ("rediss://h?ssl_cert_reqs=none", "with TLS, but its certificate is not verified"),
        ("amqps://h?ssl_cert_reqs=CERT_NONE", "with TLS, but its certificate is not verified"),
        ("amqps://h", "with TLS; its certificate is verified, but not its host name"),
        ("rediss://h?ssl_ca_certs=/c&ssl_check_hostname=false", "with TLS; its certificate is verified, but not its host name"),
        ("rediss://h?ssl_ca_certs=/c", "with TLS; its certificate and its host name are verified"),
        ("amqps://h?ssl_cert_reqs=required", "with TLS; its certificate and its host name are verified"),
    ],
)
def test_the_protection_of_a_connection_in_words(url, words):
    assert encryption_of(url) == words


# --- the way past a file of Merlin -------------------------------------------------------------------


def test_private_is_the_private_broker_whatever_merlin_says(home, monkeypatch):
    (home / "app.yaml").write_text("broker: {nonsense: 1}")
    assert choose("private").url is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "private")
    assert choose(None).url is None


def test_a_broker_of_merlin_that_does_not_answer_names_the_way_past_it(home):
    (home / "app.yaml").write_text("broker: {name: redis, server: 127.0.0.1, port: 1}")
    with pytest.raises(BrokerError, match=r"\(from app\.yaml\) cannot be used: .*use a private broker: --broker private\."):
        check(choose(None))
