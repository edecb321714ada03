"""TLS of a broker by URL: the keys of Merlin's ``app.yaml``, which the URL carries as a query.

A session stores the URL only. kombu reads ``ssl_*`` in the query for Redis; RabbitMQ needs the values in an argument.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from maestro_celery_plugin.errors import BrokerError, nearest

__all__ = ["TLS_KEYS", "encryption_of", "for_celery", "has_tls", "tls_problem", "with_tls"]

_FILES = ("ca_certs", "certfile", "keyfile")
TLS_KEYS = ("cert_reqs", *_FILES)
_CERT_REQS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_TLS_SCHEMES = ("rediss", "valkeys", "amqps")
_PREFIX = "ssl_"
_CHECK_HOST = "check_hostname"
# The keys of a URL; those of Merlin's block and one of kombu's.
_URL_KEYS = (*TLS_KEYS, _CHECK_HOST)


def with_tls(url: str, broker: Mapping[str, Any], path: Path, places: Sequence[Path] = ()) -> str:
    """Return the URL of a broker with the TLS keys of Merlin's broker block.

    The certificate of the server is verified unless `cert_reqs` is none; Merlin's default is the same.

    Args:
        url: The URL without TLS keys.
        broker: The block.
        path: The app.yaml.
        places: Further directories of the files.

    Raises:
        BrokerError: a value cannot be used, or the broker has no TLS.
    """
    places = (path.parent, *places)
    keys = {key: str(broker[key]) for key in TLS_KEYS if broker.get(key) is not None}
    if not keys or (keys == {"cert_reqs": "none"} and not has_tls(url)):  # `merlin server init` writes it
        return url
    if not has_tls(url):
        raise _unusable(
            path, next(iter(keys)), "this broker has no TLS; use the name 'rediss' or 'rabbitmq', or remove the key"
        )
    required = keys.setdefault("cert_reqs", "required").lower()
    if required not in _CERT_REQS:
        raise _unusable(path, "cert_reqs", f"found '{required}'; {nearest(required, _CERT_REQS).rstrip('.')}")
    if "keyfile" in keys and "certfile" not in keys:
        raise _unusable(path, "keyfile", "a key needs its certificate; add 'certfile'")
    query = {"cert_reqs": required, **{key: _file(path, key, keys[key], places) for key in _FILES if key in keys}}
    joined = urlencode({_PREFIX + key: value for key, value in query.items()})
    return f"{url}{'&' if '?' in url else '?'}{joined}"


def has_tls(url: str) -> bool:
    """Tell whether a URL is that of a broker with TLS."""
    return url.partition("://")[0].lower() in _TLS_SCHEMES


def _file(path: Path, key: str, name: str, places: Sequence[Path]) -> str:
    """Return the absolute path of a file: from the current directory, or its name in `celery.certs`, as Merlin.

    The directory of the app.yaml is a further place.
    """
    given = Path(name).expanduser()
    below = (place / file for place in places for file in (given, given.name))
    found = next((file for file in (given, *below) if file.is_file()), None)
    if found is None:
        raise _unusable(path, key, f"'{name}' is not a file; give the path of a PEM file")
    return str(found.absolute())


def _unusable(path: Path, key: str, problem: str) -> BrokerError:
    return BrokerError(f"{path}: broker.{key}: {problem}; `--broker private` uses a private broker instead.")


def tls_problem(url: str) -> str | None:
    """Return why the TLS keys of a URL cannot be used; None if they can.

    A key that the libraries do not know, or that a URL without TLS has, would have no effect: the connection would be
    open, and nobody would notice.
    """
    keys = {key.removeprefix(_PREFIX): value for key, value in _query(url).items() if key.startswith(_PREFIX)}
    if keys and not has_tls(url):
        return f"'{_PREFIX}{next(iter(keys))}' needs a URL with TLS, which begins with 'rediss' or 'amqps'"
    for key in keys:
        if key not in _URL_KEYS:
            return f"unknown key '{_PREFIX}{key}' in its URL; {nearest(_PREFIX + key, _url_names())}".rstrip(".?")
    required = keys.get("cert_reqs", "required")
    if _verification(required) is None:
        return f"'{_PREFIX}cert_reqs' is '{required}' in its URL; {nearest(required, _CERT_REQS)}".rstrip(".?")
    if keys.get(_CHECK_HOST, "true").lower() not in ("true", "false"):
        return f"'{_PREFIX}{_CHECK_HOST}' is '{keys[_CHECK_HOST]}' in its URL; allowed: 'true', 'false'"
    return _file_problem(keys)


def encryption_of(url: str) -> str:
    """Return how the connection to a broker is protected, in words."""
    keys, is_rabbitmq = _query(url), url.lower().startswith("amqps")
    has_keys = any(key.startswith(_PREFIX) for key in keys)
    if not has_tls(url):
        return "without TLS"
    if _verification(keys.get(f"{_PREFIX}cert_reqs", "required")) is ssl.CERT_NONE or not (has_keys or is_rabbitmq):
        return "with TLS, but its certificate is not verified"
    if not has_keys or keys.get(_PREFIX + _CHECK_HOST, "true").lower() == "false":
        return "with TLS; its certificate is verified, but not its host name"
    return "with TLS; its certificate and its host name are verified"


def _url_names() -> list[str]:
    return [_PREFIX + key for key in _URL_KEYS]


def _verification(text: str) -> ssl.VerifyMode | None:
    """Return the mode of a URL, in one of the spellings that kombu knows; None for another text."""
    spellings = {**_CERT_REQS, **{f"CERT_{name.upper()}": mode for name, mode in _CERT_REQS.items()}}
    return spellings.get(text)


def _query(url: str) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(url.partition("?")[2]).items()}


def _file_problem(keys: Mapping[str, str]) -> str | None:
    """Return which file of a URL cannot be used; None if all can.

    An encrypted key would make each process of the study wait for its password at the terminal.
    """
    for key in _FILES:
        if key in keys and not Path(keys[key]).is_absolute():
            return f"'{_PREFIX}{key}' must be an absolute path in its URL; found '{keys[key]}'"
        if key in keys and not Path(keys[key]).is_file():
            return f"'{keys[key]}' ({key}) is not a file; give the path of a PEM file"
    if "keyfile" in keys and "certfile" not in keys:
        return f"a key needs its certificate; add '{_PREFIX}certfile'"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if "ca_certs" in keys:
            context.load_verify_locations(keys["ca_certs"])
    except (ssl.SSLError, OSError) as cause:
        return f"'{keys['ca_certs']}' (ca_certs) has no certificates in PEM form ({_words(cause)})"
    try:
        if "certfile" in keys:
            context.load_cert_chain(keys["certfile"], keys.get("keyfile"), password=_refuse_password)
    except (ssl.SSLError, OSError, _EncryptedKeyError) as cause:
        file = keys.get("keyfile", keys["certfile"])
        if isinstance(cause, _EncryptedKeyError):
            return (
                f"the key in '{file}' is encrypted, and nobody can type its password; store a decrypted copy, mode 0600"
            )
        pair = f"'{keys['certfile']}' (certfile) and '{file}' (keyfile)"
        return f"{pair} are not a certificate and its key ({_words(cause)})"
    return None


class _EncryptedKeyError(Exception):
    """A private key is encrypted."""


def _refuse_password() -> str:
    raise _EncryptedKeyError


def _words(cause: Exception) -> str:
    reason = getattr(cause, "reason", None) or getattr(cause, "strerror", None) or "unreadable"
    return str(reason).replace("_", " ").lower()


def for_celery(url: str) -> tuple[str, dict[str, Any] | None]:
    """Return the URL and the value of Celery's `broker_use_ssl`; None if the URL says everything.

    Args:
        url: The URL of a session.
    """
    base, _, query = url.partition("?")
    if not base.lower().startswith("amqps") or _PREFIX not in query:
        return url, None
    values = _query(url)
    options: dict[str, Any] = {key: values.pop(_PREFIX + key) for key in TLS_KEYS if _PREFIX + key in values}
    mode = _verification(str(options.get("cert_reqs", "required")))
    options["cert_reqs"] = ssl.CERT_REQUIRED if mode is None else mode
    is_host_checked = values.pop(_PREFIX + _CHECK_HOST, "true").lower() != "false"
    if options["cert_reqs"] != ssl.CERT_NONE and is_host_checked:
        # The certificate must name it. Without a value, kombu would take 127.0.0.1 for localhost.
        options["server_hostname"] = urlsplit(base).hostname
    return (f"{base}?{urlencode(values)}" if values else base), options
