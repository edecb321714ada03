"""The user's configuration: what differs between machines, so that a specification need not say it.

It is the file ``maestro-celery/config.yaml`` in ``$XDG_CONFIG_HOME``, or in ``~/.config``:

    broker: rediss://:password@host:6379/0
    batch:
      "quartz*": {type: slurm, bank: physics, queue: pbatch}
    notify: mail -s "$MAESTRO_CELERY_NAME $MAESTRO_CELERY_STATE" ada@example.org

The file may contain a password, and a command that runs, so only its owner may read or write it.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from msgspec import field

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.settings import BatchSettings, Block, FreeBlock, Text
from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import ConfigurationError
from maestro_celery_plugin.files import read_text, write_atomically

__all__ = ["UserConfiguration", "batch_defaults", "checked", "configuration_path", "read_configuration", "store"]

_HINT = "correct the file, or use `maestro-celery config set` and `unset`"


class UserConfiguration(Block, frozen=True, kw_only=True):
    """The configuration of a user, for all studies; the keys of a specification and options have priority."""

    broker: Text | None = None
    """Broker of studies: a URL, or `private`."""
    batch: dict[str, FreeBlock] = field(default_factory=dict)
    """Keys of `batch` by a pattern of the host name, such as `quartz*`. All matching blocks apply, and the last one has
    priority; keys of a specification have priority over all.
    """
    notify: Text | None = None
    """Command that runs at the events of a study whose specification has none; see "Notifications"."""


def configuration_path() -> Path:
    """Return the file, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    root = Path(base) if Path(base).is_absolute() else Path("~/.config").expanduser()
    return root / "maestro-celery" / "config.yaml"


def read_configuration() -> UserConfiguration:
    """Read the user's configuration, which is empty without a file.

    Raises:
        ConfigurationError: other users may read or write the file, or its content cannot be used.
    """
    path = configuration_path()
    try:
        status = path.stat()
        data = parsed_yaml(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return UserConfiguration()
    except OSError as cause:
        raise ConfigurationError(
            f"{path}: it cannot be read ({cause.strerror}); correct this, or remove it."
        ) from cause
    except (yaml.YAMLError, ValueError) as cause:
        line = getattr(getattr(cause, "problem_mark", None), "line", None)
        place = "" if line is None else f" in line {line + 1}"
        raise ConfigurationError(f"{path}: it is not YAML{place}; {_HINT}.") from cause
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (os.getuid(), 0):
        raise ConfigurationError(
            f"{path}: other users may read or change it (mode {stat.S_IMODE(status.st_mode):04o}), and it can have a "
            f"password and a command; `chmod 600 {path}`."
        )
    return checked({} if data is None else data, path)


def checked(data: Any, place: Path | str, *, hint: str = _HINT) -> UserConfiguration:
    """Return a configuration from the content of its file.

    Args:
        data: The content.
        place: The file, or the command that changes it, for messages.
        hint: What a user can do.

    Raises:
        ConfigurationError: a key is unknown, or a value cannot be used.
    """
    _check(data, conversion.json_schema(UserConfiguration), f"{place}: ", "", hint)
    for pattern, block in (data.get("batch") or {}).items():
        _check(block, conversion.json_schema(BatchSettings), f"{place}: ", f"batch.{pattern}", hint)
    return conversion.from_dict(UserConfiguration, data)


def _check(data: Any, schema: Mapping[str, Any], begin: str, where: str, hint: str) -> None:
    from maestro_celery_plugin.config.schema_errors import problems  # its import takes long; most users have no file

    for place, problem in problems(data, schema):
        full = ".".join(part for part in (where, place) if part)
        raise ConfigurationError(f"{begin}{full + ': ' if full else ''}{problem.rstrip('.?')}; {hint}.")


def batch_defaults(configuration: UserConfiguration, host: str) -> dict[str, Any]:
    """Return the keys of `batch` for a host, by its whole name or its first part.

    Args:
        configuration: The configuration.
        host: Name of the host.
    """
    names = (host, host.partition(".")[0])
    result: dict[str, Any] = {}
    for pattern, block in configuration.batch.items():
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            result |= block
    return result


def store(configuration: UserConfiguration) -> None:
    """Replace the file; only its owner may read it.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    path = configuration_path()
    text = (
        yaml.safe_dump(conversion.to_dict(configuration), sort_keys=False)
        if configuration != UserConfiguration()
        else ""
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, text, mode=0o600)
    except OSError as cause:
        raise ConfigurationError(f"{path}: it cannot be written ({cause.strerror}).") from cause
