"""What is wrong with a broker that cannot be used, and what to do, in one sentence.

The errors come from the libraries of each transport; the cause, such as a certificate, is often deep in their chain.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from kombu.utils.url import url_to_parts

from maestro_celery_plugin.broker.tls import has_tls

__all__ = ["PORTS", "REDIS_PORT", "failure_of", "is_refusal", "reason_of"]

# Default ports by scheme; all other schemes have the default port of Redis.
PORTS = {"amqps": 5671, "amqp": 5672, "pyamqp": 5672}
REDIS_PORT = 6379
# Results of the verification of a certificate (openssl-verification-options(1), X509_V_ERR_*).
_EXPIRED, _NOT_YET_VALID, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64
_ANSWER_S = 2.0


def failure_of(cause: Exception, url: str) -> str:
    """Return what is wrong, and what to do, as a sentence.

    Args:
        cause: The error of the connection.
        url: The URL of the broker.
    """
    for error in _chain(cause):
        if isinstance(error, ssl.SSLCertVerificationError):
            return _certificate(error, url)
    for error in _chain(cause):
        if isinstance(error, ssl.SSLError):
            return _handshake(error, url)
    return _login(cause, url) or _plain(url) or f"{reason_of(cause)}. Start it, or correct the URL."


def _certificate(error: ssl.SSLCertVerificationError, url: str) -> str:
    """Describe a certificate of the server that is not accepted."""
    host = url_to_parts(url).hostname
    if error.verify_code == _EXPIRED:
        return "its certificate has expired. Let its administrator renew it."
    if error.verify_code == _NOT_YET_VALID:
        return "its certificate is not valid yet. Check the clocks of this machine and of the server."
    if error.verify_code in (_OTHER_HOST, _OTHER_ADDRESS):
        return f"its certificate is not for the host '{host}'. Use the host name that is in its certificate."
    return (
        f"no certificate authority that you trust has signed its certificate ({error.verify_message}). Set 'ca_certs' "
        "('ssl_ca_certs' in a URL) to the PEM file of its authority."
    )


def _handshake(error: ssl.SSLError, url: str) -> str:
    """Describe a TLS connection that was not established, or that the server has ended at once."""
    text = str(error).upper().replace("_", " ")
    is_other_version = "VERSION" in text
    if "CERTIFICATE REQUIRED" in text or ("certfile" not in url and not is_other_version and _speaks_tls(url)):
        return (
            "it wants a certificate of its clients. Set 'certfile' and 'keyfile' ('ssl_certfile' and 'ssl_keyfile' in "
            "a URL)."
        )
    if "certfile" in url and not is_other_version and _speaks_tls(url):
        return (
            f"it does not accept the client certificate ({_alert(text)}). Set 'certfile' and 'keyfile' to a valid "
            "certificate of an authority that the server trusts."
        )
    if _speaks_tls(url) is False:
        return f"its port {_port(url)} speaks no TLS. Use the port for TLS, or the scheme {_other_scheme(url)}."
    return f"no TLS connection is possible ({reason_of(error)}). Check the versions of TLS that the server supports."


def _alert(text: str) -> str:
    return (
        text.partition("ALERT ")[2].partition("]")[0].partition(" (")[0].strip().lower()
        or "it has closed the connection"
    )


def _login(cause: Exception, url: str) -> str | None:
    """Describe a user, a password or a virtual host that the server does not accept."""
    import amqp
    import redis.exceptions

    for error in _chain(cause):
        if isinstance(error, amqp.NotAllowed):
            return (
                f"the virtual host '{url_to_parts(url).path or '/'}' does not exist, or the user may not use "
                "it. Correct the last part of the URL ('vhost' in Merlin's app.yaml)."
            )
        if isinstance(error, redis.exceptions.NoPermissionError) or (
            isinstance(error, amqp.AccessRefused) and "login" not in str(error).lower()
        ):
            return f"the user may not use task queues ({reason_of(error)}). Ask its administrator for the permissions."
        if isinstance(error, amqp.AccessRefused | redis.exceptions.AuthenticationError):
            return f"it refuses the user or the password ({reason_of(error)}). Correct them."
        if isinstance(error, redis.exceptions.MovedError | redis.exceptions.ClusterDownError):
            return "it is a Redis Cluster, which Celery does not support. Use a single server, or RabbitMQ."
        if isinstance(error, redis.exceptions.ReadOnlyError):
            return "it is a read-only replica. Use the URL of the primary server."
        if isinstance(error, redis.exceptions.ResponseError) and "DB index" in str(error):
            return f"it has no database '{url_to_parts(url).path}'. Correct the last part of the URL."
    return None


def _plain(url: str) -> str | None:
    """Describe a port that speaks TLS although the URL does not, or the other way round; None for another problem."""
    speaks_tls = _speaks_tls(url)
    if speaks_tls is None or speaks_tls is has_tls(url):
        return None
    if speaks_tls:
        return f"its port {_port(url)} speaks TLS only. Use the scheme {_other_scheme(url)}."
    return (
        f"its port {_port(url)} speaks no TLS, or does not answer at all. Use the port for TLS, or the scheme "
        f"{_other_scheme(url)}."
    )


def _speaks_tls(url: str) -> bool | None:
    """Tell whether the server of a URL begins a TLS connection, whatever its certificate; None without a server."""
    host, context = url_to_parts(url).hostname, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if not host:
        return None  # a Unix socket
    try:
        connection = socket.create_connection((host, _port(url)), _ANSWER_S)
    except OSError:
        return None
    try:
        with connection, context.wrap_socket(connection, server_hostname=host):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error).upper()
    except OSError:
        return False


def _port(url: str) -> int:
    parts = url_to_parts(url)
    return int(parts.port or PORTS.get(parts.scheme.lower(), REDIS_PORT))


def _other_scheme(url: str) -> str:
    scheme = url.partition("://")[0].lower()
    return {"rediss": "'redis'", "redis": "'rediss'", "amqps": "'amqp'"}.get(scheme, "'amqps'")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that have led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def reason_of(cause: BaseException) -> str:
    """Return the text of an error without its full stop, on one line."""
    return " ".join(str(cause).split()).rstrip(".") or type(cause).__name__


def is_refusal(error: BaseException) -> bool:
    """Tell whether a broker has answered, and has refused a user, a password or a certificate: this does not pass."""
    # Imported here: their import takes longer than all others of this module, and most processes never need them.
    import amqp
    import redis.exceptions

    refusals = (
        amqp.AccessRefused,
        amqp.NotAllowed,
        redis.exceptions.AuthenticationError,
        redis.exceptions.AuthorizationError,
        redis.exceptions.NoPermissionError,
        ssl.SSLCertVerificationError,
    )
    return any(isinstance(one, refusals) for one in _chain(error))
