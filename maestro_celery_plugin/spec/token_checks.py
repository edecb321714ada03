"""Checks of tokens: each name has one meaning, and each token in a command has a value."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maestro_celery_plugin.config.settings import SampleSettings
from maestro_celery_plugin.config.tokens import RESERVED, names_in
from maestro_celery_plugin.errors import SpecificationError

__all__ = ["check_names", "check_parameter_names", "unknown_tokens"]

MAESTRO_TOKENS = ("LAUNCHER", "WORKSPACE", "SPECROOT", "OUTPUT_PATH")
_CAPITALS = re.compile(r"[A-Z][A-Z0-9_]*")


def unknown_tokens(data: Mapping[str, Any], parameters: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, name) of each token in a command that is probably misspelt: ``$(XX)`` for ``$(X)``.

    Such a token has no value, so the shell runs it as a command. Its name is in capitals and is not a command.

    Args:
        data: The specification.
        parameters: The names of the parameters.
    """
    environment = data.get("env") or {}
    samples = (data.get("merlin") or {}).get("samples") or {}
    kinds = environment.get("dependencies") or {}
    dependencies = [entry["name"] for kind in ("paths", "git") for entry in kinds.get(kind) or ()]
    blocks = (environment.get("variables"), environment.get("labels"))
    defined = {*RESERVED, *MAESTRO_TOKENS, *dependencies, *samples.get("column_labels", ()), *parameters}
    defined.update(name for block in blocks for name in block or ())
    for step in data["study"]:
        for key in ("cmd", "restart"):
            for name in sorted(names_in(step["run"].get(key) or "")):
                if _CAPITALS.fullmatch(name) and name not in defined and shutil.which(name) is None:
                    yield f"study.{step['name']}.run.{key}", name


def check_parameter_names(names: Iterable[str], samples: SampleSettings | None, file: str, source: str) -> None:
    """Check that no parameter has the name of another token; a parameter generator can choose any name.

    Args:
        names: The names of the parameters.
        samples: The samples of the specification.
        file: Name of the specification, for messages.
        source: Where the parameters come from.

    Raises:
        SpecificationError: a parameter has the name of a column, or a reserved name.
    """
    for name in names:
        if name in RESERVED:
            raise SpecificationError.at(file, f"{source}.{name}", f"$({name}) is a reserved name; use another name.")
        if samples and name in samples.column_labels:
            raise _two_meanings(file, name, source)


def _two_meanings(file: str, label: str, block: str) -> SpecificationError:
    return SpecificationError.at(
        file,
        "merlin.samples.column_labels",
        f"'{label}' is also a name in {block}; $({label}) must have one meaning.",
    )


def check_names(data: Mapping[str, Any], file: str) -> None:
    """Check that every token has one meaning.

    Raises:
        SpecificationError: two things have one name, or a name is reserved.
    """
    environment = data.get("env") or {}
    blocks = {
        "global.parameters": data.get("global.parameters") or {},
        "env.variables": environment.get("variables") or {},
        "env.labels": environment.get("labels") or {},
    }
    for block, names in blocks.items():
        for name in names:
            if name in RESERVED:
                raise SpecificationError.at(file, f"{block}.{name}", f"$({name}) is a reserved name; use another name.")
    samples = (data.get("merlin") or {}).get("samples")
    labels = samples["column_labels"] if samples else []
    where = "merlin.samples.column_labels"
    for label in labels:
        if not re.fullmatch(r"[^\s()]+", label):
            raise SpecificationError.at(file, where, f"'{label}' cannot be a token; use letters, digits and '_'.")
        if labels.count(label) > 1:
            raise SpecificationError.at(file, where, f"found '{label}' twice; each column needs its own label.")
        if label in (*RESERVED, "OUTPUT_PATH"):
            raise SpecificationError.at(file, where, f"'{label}' is a reserved name; use another name.")
        for block, names in blocks.items():
            if label in names:
                raise _two_meanings(file, label, block)
