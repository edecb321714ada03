"""TLS of a broker by URL: the keys of Merlin's ``app.yaml``, which the URL carries as a query.

A session stores the URL only. kombu reads ``ssl_*`` in the query for Redis; RabbitMQ needs the values in an argument.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from maestro_celery_plugin.errors import BrokerError, nearest

__all__ = ["TLS_KEYS", "for_celery", "with_tls"]

_FILES = ("ca_certs", "certfile", "keyfile")
TLS_KEYS = ("cert_reqs", *_FILES)
_CERT_REQS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_TLS_SCHEMES = ("rediss", "valkeys", "amqps")
_PREFIX = "ssl_"


def with_tls(url: str, broker: Mapping[str, Any], path: Path) -> str:
    """Return the URL of a broker with the TLS keys of Merlin's broker block.

    The certificate of the server is verified unless `cert_reqs` is none; Merlin's default is the same.

    Args:
        url: The URL without TLS keys.
        broker: The block.
        path: The app.yaml.

    Raises:
        BrokerError: a value cannot be used, or the broker has no TLS.
    """
    keys = {key: str(broker[key]) for key in TLS_KEYS if broker.get(key) is not None}
    if not keys or (keys == {"cert_reqs": "none"} and not _has_tls(url)):  # `merlin server init` writes it
        return url
    if not _has_tls(url):
        raise _unusable(
            path, next(iter(keys)), "this broker has no TLS; use the name 'rediss' or 'rabbitmq', or remove the key"
        )
    required = keys.setdefault("cert_reqs", "required").lower()
    if required not in _CERT_REQS:
        raise _unusable(path, "cert_reqs", f"found '{required}'; {nearest(required, _CERT_REQS).rstrip('.')}")
    if "keyfile" in keys and "certfile" not in keys:
        raise _unusable(path, "keyfile", "a key needs its certificate; add 'certfile'")
    query = {"cert_reqs": required, **{key: _file(path, key, keys[key]) for key in _FILES if key in keys}}
    joined = urlencode({_PREFIX + key: value for key, value in query.items()})
    return f"{url}{'&' if '?' in url else '?'}{joined}"


def _has_tls(url: str) -> bool:
    return url.partition("://")[0].lower() in _TLS_SCHEMES


def _file(path: Path, key: str, name: str) -> str:
    """Return the absolute path of a file: from the current directory, as Merlin, or from that of the app.yaml."""
    given = Path(name).expanduser()
    found = next((file for file in (given, path.parent / given) if file.is_file()), None)
    if found is None:
        raise _unusable(path, key, f"'{name}' is not a file; give the path of a PEM file")
    return str(found.absolute())


def _unusable(path: Path, key: str, problem: str) -> BrokerError:
    return BrokerError(f"{path}: broker.{key}: {problem}; `--broker private` uses a private broker instead.")


def for_celery(url: str) -> tuple[str, dict[str, Any] | None]:
    """Return the URL and the value of Celery's `broker_use_ssl`; None if the URL says everything.

    Args:
        url: The URL of a session.
    """
    base, _, query = url.partition("?")
    if not base.lower().startswith("amqps") or _PREFIX not in query:
        return url, None
    values = {key: value[-1] for key, value in parse_qs(query).items()}
    options: dict[str, Any] = {key: values.pop(_PREFIX + key) for key in TLS_KEYS if _PREFIX + key in values}
    options["cert_reqs"] = _CERT_REQS.get(options.get("cert_reqs", "").lower(), ssl.CERT_REQUIRED)
    if options["cert_reqs"] != ssl.CERT_NONE:
        options["server_hostname"] = None  # kombu inserts the host of the URL, which the certificate must name
    return (f"{base}?{urlencode(values)}" if values else base), options
