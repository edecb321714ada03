"""`env.sources`: what prepares the environment of each step, as lines before its commands.

Maestro and Merlin read the list, and do nothing with it (maestrowf: yamlspecification.py:543).
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from maestro_celery_plugin.errors import SpecificationError

__all__ = ["with_sources"]

LOGGER = logging.getLogger(__name__)

_DEFAULT_SHELL = "/bin/bash"


def with_sources(data: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """Return the steps of a specification, with `env.sources` before `cmd` and `restart`.

    An entry that is one word, or the path of a file, is a file to source; any other is a command, such as
    ``module load gcc``. A step whose interpreter is no shell does not change.

    Raises:
        SpecificationError: an entry is not text.
    """
    sources = (data.get("env") or {}).get("sources") or []
    for number, source in enumerate(sources):
        if not isinstance(source, str) or not source.strip():
            raise SpecificationError.at(
                file, f"env.sources[{number}]", f"found {source!r}; the path of a file or a command is needed."
            )
    return [_prepared(step, sources, data, file) for step in data["study"]] if sources else data["study"]


def _prepared(step: Mapping[str, Any], sources: list[str], data: Mapping[str, Any], file: str) -> dict[str, Any]:
    run, batch = step["run"], data.get("batch") or {}
    shell = _program(run.get("shell") or batch.get("shell") or _DEFAULT_SHELL)
    if not shell.endswith("sh"):
        LOGGER.warning("%s: env.sources: the step '%s' does not use it: '%s' is no shell.", file, step["name"], shell)
        return dict(step)
    lines = "\n".join(_line(source.strip(), shell) for source in sources)
    scripts = {key: f"{lines}\n{run[key]}" for key in ("cmd", "restart") if run.get(key)}
    return {**step, "run": {**run, **scripts}}


def _program(shell: str) -> str:
    """Return the name of the interpreter, which `env` may start."""
    names = [PurePath(word).name for word in shlex.split(shell) if not word.startswith("-")]
    return next((name for name in names if name != "env"), "")


def _line(source: str, shell: str) -> str:
    if len(source.split()) > 1 and not Path(source).is_file():
        return source
    file = source if source.startswith("~") else f'"{source}"'  # a shell expands no ~ in quotes
    return f"source {file}" if shell.endswith("csh") else f". {file}"
