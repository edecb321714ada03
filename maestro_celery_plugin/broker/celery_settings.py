"""The settings of Celery that a user may change: those about the connection to the broker.

All others have a value on which the promises of this plugin rest (`app.SETTINGS`). A setting that cannot have its
effect stops the launch; one whose purpose this plugin meets in another way is noted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maestro_celery_plugin.broker.failures import PORTS
from maestro_celery_plugin.errors import BrokerError, nearest

__all__ = ["celery_settings"]

_TRANSPORT = "broker_transport_options"


def _is_number(least: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= least


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


# What a value must be, in words, and whether it is.
_Rule = tuple[str, Callable[[Any], bool]]
_FLAG: _Rule = ("true or false", _is_flag)
_ONLY_TRUE: _Rule = (
    "true: without it, a broker that is started again would end the study's workers",
    lambda v: v is True,
)
_SECONDS: _Rule = ("a number of seconds of at least 1", _is_number(1))
_TAKEN: Mapping[str, _Rule] = {
    "broker_connection_timeout": _SECONDS,
    "broker_connection_retry": _ONLY_TRUE,
    "broker_connection_retry_on_startup": _ONLY_TRUE,
    "broker_connection_max_retries": ("null, for no limit", lambda value: value is None),
    "broker_heartbeat": ("a number of seconds, or 0 for no heartbeat", _is_count(0)),
    "broker_heartbeat_checkrate": ("a number of at least 1", _is_number(1)),
    "broker_login_method": ("PLAIN, AMQPLAIN or EXTERNAL", lambda value: value in ("PLAIN", "AMQPLAIN", "EXTERNAL")),
    "broker_pool_limit": ("an integer of at least 1", _is_count(1)),
    "worker_send_task_events": _FLAG,
}
_TAKEN_TRANSPORT: Mapping[str, _Rule] = {
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _FLAG,
    "health_check_interval": _SECONDS,
    "max_connections": ("an integer of at least 10", _is_count(10)),
}
# Settings without an effect here, and why they are not needed.
_NEEDLESS = (
    (r"(.*\.)?visibility_timeout", "a message is acknowledged before its samples run, so none is delivered again"),
    (
        r".*\.(priority_steps|queue_order_strategy|sep|polling_interval|fanout_.*)",
        "this plugin orders its messages itself",
    ),
    (r"result_(?!backend).*|redis_.*|database_.*", "the ledger of the study, and no result backend, has the results"),
    (r"beat_.*|control_.*|event_(?!serializer).*", "workers of a study do not use it"),
    (r"worker_(log|task_log)_.*|timezone|enable_utc", "workers of a study have a log format of their own"),
)
# Settings that would break a promise, and why.
_REFUSED = (
    (
        r"task_(acks|reject|retry).*",
        "messages are acknowledged before their samples run; the ledger records what runs again",
    ),
    (r".*serializer|.*accept_content|task_(compression|protocol)|security_.*", "messages are signed JSON without code"),
    (r".*backend.*", "the ledger of the study, and no result backend, has the results"),
    (r".*prefetch.*|worker_eta.*", "a worker takes a message only when it has a free slot"),
    (r"worker_(concurrency|pool|max|autoscaler).*", "set it for each worker group: merlin.resources.workers.NAME.args"),
    (r"task_.*time_limit", "it would end a process in the middle of a sample"),
    (
        r"(task_(queue|route|default|create).*|.*exchange.*|.*keyprefix)",
        "this plugin names and declares the queues of a study",
    ),
    (r"worker_enable_remote_control", "commands of the remote control have no signatures"),
    (r"broker_(url|.*_url|host|port|user|password|vhost|transport|use_ssl)", "the block 'broker' says it"),
)


def celery_settings(override: Any, overrides: Any, url: str, path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the settings of Celery for a study, and notes about those without an effect.

    Args:
        override: The block `celery.override` of Merlin's app.yaml, or None.
        overrides: The block `celery.overrides`, which Merlin's template has and Merlin ignores, or None.
        url: URL of the broker; the options of the transport are for Redis.
        path: The app.yaml.

    Raises:
        BrokerError: a setting is unknown to Celery, or must keep its value here.
    """
    settings: dict[str, Any] = {}
    notes: list[str] = []
    is_redis = url.partition("://")[0].lower() not in PORTS  # the rest of the URL is checked later
    for block, where in ((overrides, "celery.overrides"), (override, "celery.override")):
        if block is not None and not isinstance(block, Mapping):
            raise BrokerError(f"{path}: {where}: found '{block}'; a block of Celery's settings is needed.")
        for name, value in (block or {}).items():
            for key, item, rules in _flat(str(name), value, _TAKEN_TRANSPORT if is_redis else {}):
                if _is_taken(key, item, rules, f"{path}: {where}", notes):
                    _store(settings, key, item)
    return settings, tuple(notes)


def _flat(name: str, value: Any, transport: Mapping[str, _Rule]) -> list[tuple[str, Any, Mapping[str, _Rule]]]:
    """Return a setting, or each of the options of the transport, with the rules of its values."""
    if name == _TRANSPORT and isinstance(value, Mapping):
        return [(f"{_TRANSPORT}.{key}", item, transport) for key, item in value.items()]
    return [(name, value, _TAKEN)]


def _store(settings: dict[str, Any], key: str, value: Any) -> None:
    outer, _, inner = key.partition(".")
    if inner:
        settings.setdefault(outer, {})[inner] = value
    else:
        settings[outer] = value


def _is_taken(key: str, value: Any, rules: Mapping[str, _Rule], place: str, notes: list[str]) -> bool:
    """Tell whether a study takes a setting; add a note if it needs none.

    Raises:
        BrokerError: the setting is unknown, or has a value that cannot be used.
    """
    rule = rules.get(key.removeprefix(f"{_TRANSPORT}."))
    if rule is not None:
        if not rule[1](value):
            raise _error(place, key, f"found '{value}'; the value must be {rule[0]}")
        return True
    needless = _reason(_NEEDLESS, key)
    if needless:
        notes.append(f"{place}.{key} has no effect here: {needless}.")
        return False
    known = _settings_of_celery()
    if "." not in key and key not in known:
        raise _error(place, key, f"Celery has no such setting; {_nearest(key, known)}")
    reason = _reason(_REFUSED, key) or "this plugin sets it itself, or does not use it"
    raise _error(place, key, f"found '{value}', but the setting cannot be changed here: {reason}; remove it")


def _settings_of_celery() -> list[str]:
    from celery.app.defaults import NAMESPACES, flatten  # its import takes long, and few users need it

    return [name for name, _ in flatten(NAMESPACES)]


def _reason(table: tuple[tuple[str, str], ...], key: str) -> str | None:
    return next((reason for pattern, reason in table if re.fullmatch(pattern, key)), None)


def _nearest(key: str, known: list[str]) -> str:
    """Return a similar setting, not the list of all."""
    hint = nearest(key, known)
    return hint.rstrip("?") if hint.startswith("did you mean") else "correct or remove it"


def _error(place: str, key: str, problem: str) -> BrokerError:
    return BrokerError(f"{place}.{key}: {problem}. `--broker URL` and `--broker private` do not read this file.")
