"""The choice of a broker: the priority of its sources, its URL, and messages without its password."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.broker.choice import ENVIRONMENT_VARIABLE, BrokerChoice, check, choose, masked
from maestro_celery_plugin.errors import BrokerError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """The home and working directory of a user without a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "ada")
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
    with pytest.raises(BrokerError, match=r"cannot be used: the URL needs one of the schemes redis, .*\. Start it, correct"):
        check(BrokerChoice(url, "--broker"))


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
