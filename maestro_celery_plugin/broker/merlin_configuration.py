"""Merlin's configuration ``app.yaml``: the URL of its broker, and its settings of Celery."""

from __future__ import annotations

import dataclasses
import errno
import getpass
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from kombu.utils.url import as_url, safequote

from maestro_celery_plugin.broker.celery_settings import celery_settings
from maestro_celery_plugin.broker.failures import PORTS, REDIS_PORT
from maestro_celery_plugin.broker.tls import TLS_KEYS, with_tls
from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import BrokerError, nearest

__all__ = ["MerlinBroker", "merlin_configuration", "read_merlin"]

# The keys of Merlin's broker block. Those without a use here are for Merlin's server, or for the results.
_BLOCK_KEYS = frozenset(
    (
        *("name", "server", "port", "username", "password", "vhost", "db_num", "path", "url", *TLS_KEYS),
        *("socketname", "pass_file", "encryption_key"),
    )
)
_NAMES = ("redis", "rediss", "redis+socket", "amqp", "amqps", "rabbitmq", "valkey", "valkeys")
# What a password in the file hardly begins with, but its path.
_PATH = re.compile(r"~?/|\.\.?/")
_PLACEHOLDER = re.compile(r"<\w+( \w+)*>")
_CELERY_KEYS = ("override", "overrides", "omit_queue_tag", "queue_tag", "certs")


@dataclasses.dataclass(frozen=True)
class MerlinBroker:
    """The broker of Merlin's app.yaml.

    Attributes:
        url: URL with the password.
        celery: Settings of Celery for the processes of a study.
        notes: Sentences about keys that mean something else here.
    """

    url: str
    celery: Mapping[str, Any]
    notes: tuple[str, ...]


def merlin_configuration() -> Path | None:
    """Return the app.yaml that Merlin would use (config/configfile.py:80-110).

    Raises:
        BrokerError: it cannot be looked for.
    """
    home = Path("~/.merlin").expanduser()
    candidates = [Path("app.yaml"), home / "app.yaml"]
    pointer = home / "config_path.txt"
    try:
        if pointer.is_file():
            candidates.insert(1, Path(pointer.read_text().strip()))
        return next((path for path in candidates if path.is_file()), None)
    except (OSError, UnicodeDecodeError) as cause:
        raise BrokerError(
            f"Merlin's app.yaml cannot be looked for: {cause}. Correct this, or set a broker with --broker URL or "
            "--broker private."
        ) from cause


def read_merlin(path: Path) -> MerlinBroker:
    """Read the blocks `broker` and `celery` of Merlin's app.yaml.

    Raises:
        BrokerError: the file has no broker block, or a block cannot be used.
    """
    try:
        document = parsed_yaml(path.read_text())
        broker = document["broker"]
        _check_keys(broker.keys(), path)
        _check_values(broker, path)
        celery = _celery_block(document.get("celery"), path)
        places = [Path(str(celery["certs"])).expanduser()] if celery.get("certs") else []
        url = with_tls(_url_of_block(broker, path, places), broker, path, places)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as cause:
        raise BrokerError(
            f"{path}: no usable broker block ({cause!r}); correct it, or set a broker with --broker URL or "
            "--broker private."
        ) from cause
    settings, notes = celery_settings(celery.get("override"), celery.get("overrides"), url, path)
    return MerlinBroker(url, settings, (*_notes_on_queues(celery, path), *notes))


def _check_keys(keys: Iterable[Any], path: Path) -> None:
    for key in keys:
        if key == "ssl_protocol":
            raise BrokerError(
                f"{path}: broker: the key 'ssl_protocol' has no effect here: client and server use the newest version "
                "of TLS that both know; remove it. `--broker private` uses a private broker instead."
            )
        if key not in _BLOCK_KEYS:
            raise BrokerError(
                f"{path}: broker: unknown key '{key}'; {nearest(str(key), _BLOCK_KEYS)} `--broker private` uses a "
                "private broker instead."
            )


def _check_values(broker: Mapping[str, Any], path: Path) -> None:
    """Check that Merlin's template is filled in, and that the port is one."""
    for key, value in broker.items():
        if _PLACEHOLDER.fullmatch(str(value)) and (key != "password" or " " in value):
            raise BrokerError(
                f"{path}: broker.{key}: found the placeholder '{value}' of Merlin's template; replace it with a value. "
                "`--broker private` uses a private broker instead."
            )
    port = str(broker.get("port") or 1)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise BrokerError(
            f"{path}: broker.port: found '{port}'; a number from 1 to 65535 is needed. `--broker private` uses a "
            "private broker instead."
        )


def _celery_block(block: Any, path: Path) -> Mapping[str, Any]:
    """Return the block `celery`, which may be missing or empty.

    Raises:
        BrokerError: it is no block, or has an unknown key.
    """
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        raise BrokerError(f"{path}: celery: found '{block}'; a block of keys is needed.")
    for key in block:
        if key not in _CELERY_KEYS:
            raise BrokerError(
                f"{path}: celery: unknown key '{key}'; {nearest(str(key), _CELERY_KEYS)} Settings of Celery belong "
                "into the block 'override'. `--broker private` uses a private broker instead."
            )
    return block


def _notes_on_queues(celery: Mapping[str, Any], path: Path) -> Iterable[str]:
    if celery.get("omit_queue_tag"):
        yield (
            f"{path}: celery.omit_queue_tag: the queues of each study keep a prefix of their own, because workers run "
            "only what the key of their session has signed; `maestro run --session STUDY` shares workers on purpose."
        )


def _url_of_block(broker: Mapping[str, Any], path: Path, places: Sequence[Path]) -> str:
    if broker.get("url"):
        return str(broker["url"])
    name = str(broker["name"]).lower()
    if name not in _NAMES:
        raise BrokerError(
            f"{path}: broker.name: found '{broker['name']}'; {nearest(name, _NAMES)} `--broker private` uses a private "
            "broker instead."
        )
    scheme = {"rabbitmq": "amqps"}.get(name, name)
    if scheme == "redis+socket":
        return f"redis+socket://{broker['path']}?virtual_host={broker.get('db_num', 0)}"
    return _server_url(scheme, broker, _password(str(broker.get("password") or ""), path, places))


def _server_url(scheme: str, broker: Mapping[str, Any], password: str) -> str:
    """Return the URL of a server; Merlin inserts texts as they are, so that ``%40`` in them is ``@``."""
    is_redis = scheme.startswith("redis")
    user = unquote(str(broker.get("username") or ("" if is_redis else getpass.getuser())))
    path = str(broker.get("db_num", 0))
    if not is_redis:
        path = safequote(unquote(str(broker.get("vhost") or getpass.getuser())))
    port = broker.get("port") or PORTS.get(scheme, REDIS_PORT)
    server = str(broker["server"] or "").strip("[]")
    if not server:
        raise KeyError("server")
    return str(as_url(scheme, server, port, user, password, path))


def _password(text: str, path: Path, places: Sequence[Path]) -> str:
    """Return the first line of a password file, or the text itself without such a file (Merlin: config/utils.py).

    Raises:
        BrokerError: the text is the path of a file that does not exist. The message does not repeat it.
        OSError: the file cannot be read.
    """
    given = Path(text.strip()).expanduser()
    candidates = (Path("~/.merlin").expanduser() / given, given, *(place / given for place in places))
    found = next(filter(_is_file, candidates), None) if text.strip() else None
    if found is None and _PATH.match(text.strip()):
        raise BrokerError(
            f"{path}: broker.password: its value is a path, but there is no such file; correct it, or put a password "
            "that begins in this way into a file. `--broker private` uses a private broker instead."
        )
    return unquote(text.strip()) if found is None else found.read_text().partition("\n")[0].strip()


def _is_file(path: Path) -> bool:
    """Tell whether a password is the path of a file; a token may be longer than any path."""
    try:
        return path.is_file()
    except OSError as cause:
        if cause.errno == errno.ENAMETOOLONG:
            return False
        raise
