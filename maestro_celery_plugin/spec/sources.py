"""`env.sources`: what prepares the environment of each step, as lines before its commands.

Maestro and Merlin read the list, and do nothing with it (maestrowf: yamlspecification.py:543).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from maestro_celery_plugin.spec.problems import Checked, Kind, Problem

__all__ = ["program_of", "with_sources"]

_DEFAULT_SHELL = "/bin/bash"


def with_sources(data: Mapping[str, Any], shells: Mapping[str, str]) -> Checked[list[dict[str, Any]]]:
    """Return the steps of a specification, with `env.sources` before `cmd` and `restart`.

    An entry that is one word, or the path of a file, is a file to source; any other is a command, such as
    ``module load gcc``. A step whose interpreter is no shell does not change.

    Args:
        data: The specification.
        shells: The interpreter by the name of the step, for steps that workers run.
    """
    sources = []
    for number, source in enumerate((data.get("env") or {}).get("sources") or []):
        if isinstance(source, str) and source.strip():
            sources.append(source.strip())
        else:
            where = f"env.sources[{number}]"
            yield Problem(where, f"found {source!r}; the path of a file or a command is needed.")
    steps = []
    for step in data["study"]:
        own = shells.get(step["name"]) or step["run"].get("shell")
        shell = program_of(own or (data.get("batch") or {}).get("shell") or _DEFAULT_SHELL)
        if sources and not shell.endswith("sh"):
            text = f"the step '{step['name']}' does not use it: '{shell}' is no shell."
            yield Problem("env.sources", text, Kind.WARNING)
        steps.append(_prepared(step, sources, shell) if shell.endswith("sh") else dict(step))
    return steps


def _prepared(step: Mapping[str, Any], sources: list[str], shell: str) -> dict[str, Any]:
    run = step["run"]
    lines = "".join(f"{_line(source, shell)}\n" for source in sources)
    return {**step, "run": {**run, **{key: f"{lines}{run[key]}" for key in ("cmd", "restart") if run.get(key)}}}


def program_of(shell: str) -> str:
    """Return the name of the program of an interpreter, which `env` may start."""
    try:
        words = shlex.split(shell)
    except ValueError:  # a fault that `checks.py` reports
        words = shell.split()
    names = [PurePath(word).name for word in words if not word.startswith("-")]
    return next((name for name in names if name != "env"), "")


def _line(source: str, shell: str) -> str:
    if len(source.split()) > 1 and not Path(source).is_file():
        return source
    file = source if source.startswith("~") else f'"{source}"'  # a shell expands no ~ in quotes
    return f"source {file}" if shell.endswith("csh") else f". {file}"
