"""Checks of a specification, block by block; the first problem raises an error with file, key and allowed values."""

from __future__ import annotations

import difflib
import logging
import shlex
import shutil
from collections.abc import Collection, Mapping, Set
from typing import Any, TypeVar

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.config.schema_errors import problems
from maestro_celery_plugin.config.settings import BatchSettings, MerlinSettings, StepSettings
from maestro_celery_plugin.config.step_entry import SHELL_KEY
from maestro_celery_plugin.config.tokens import names_in
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.plugins import batch_systems
from maestro_celery_plugin.spec.dag import check_graph
from maestro_celery_plugin.spec.plain_data import check_free_block, check_plain
from maestro_celery_plugin.spec.step_keys import check_unused_keys
from maestro_celery_plugin.spec.token_checks import check_names

__all__ = [
    "STEP_SETTING_KEYS",
    "check_batch",
    "check_block",
    "check_content",
    "check_native",
    "check_shape",
    "known_batch",
    "known_blocks",
    "settings_of",
    "without_empty_keys",
]

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

BLOCKS = ("description", "batch", "env", "study", "global.parameters", "merlin", "user")
# Batch systems whose adapter in Maestro ignores the shell (lsfscriptadapter.py:70).
IGNORES_SHELL = ("lsf", "lsf-srun")
# How similar an unknown name must be to a missing one, from 0 to 1, to count as misspelt.
_BLOCK_SIMILARITY = 0.85
_KEY_SIMILARITY = 0.75
STEP_SETTING_KEYS = conversion.keys_of(StepSettings)
# Keys of `batch` that are blocks with arbitrary keys.
_FREE_KEYS = ("args", "allocation_args", "launcher_args")


def known_blocks(data: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return the blocks that the plugin or Maestro uses; log the others, which a parameter generator may read.

    Raises:
        SpecificationError: the name of a block is probably misspelt.
    """
    return _known(data, BLOCKS, _BLOCK_SIMILARITY, "block", file, "")


def known_batch(block: Any, file: str) -> Any:
    """Return `batch` without unknown keys; log them, because Maestro ignores them, and other programs may read them.

    Raises:
        SpecificationError: a key is probably misspelt.
    """
    keys = conversion.keys_of(BatchSettings)
    return _known(block, keys, _KEY_SIMILARITY, "key", file, "batch") if isinstance(block, Mapping) else block


def _known(
    block: Mapping[str, Any], names: Collection[str], similarity: float, kind: str, file: str, where: str
) -> dict[str, Any]:
    absent = [name for name in names if name not in block]
    for key in block:
        if key in names:
            continue
        close = difflib.get_close_matches(str(key), absent, n=1, cutoff=similarity)
        if close:
            raise SpecificationError.at(file, where, f"unknown {kind} '{key}'; did you mean '{close[0]}'?")
        LOGGER.warning("%s: %sthe unknown %s %r is ignored.", file, f"{where}: " if where else "", kind, str(key))
    return {key: value for key, value in block.items() if key in names}


def check_shape(data: Mapping[str, Any], file: str) -> None:
    """Check that the top-level blocks have the right type, before variables are inserted.

    Raises:
        SpecificationError: a block has the wrong type, or a key or text anywhere cannot be used.
    """
    check_plain(data, file)
    for block, kind, name in (("description", dict, "a block of keys"), ("study", list, "a list of steps")):
        if not isinstance(data.get(block), kind) or not data[block]:
            raise SpecificationError.at(file, block, f"the block is missing or empty; {name} is needed.")
    for block in ("env", "batch", "global.parameters", "merlin"):
        _check_is_block(data.get(block), file, block)
    for block in ("variables", "labels", "dependencies"):
        _check_is_block((data.get("env") or {}).get(block), file, f"env.{block}")


def _check_is_block(value: Any, file: str, where: str) -> None:
    if value is not None and not isinstance(value, dict):
        check_block(value, {"type": "object"}, file, where)


def without_empty_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Return the specification without keys that have no value; such keys count as absent, as in Merlin."""
    result = {block: value for block, value in data.items() if value is not None}
    for block in ("merlin", "batch"):
        if block in result:
            result[block] = _without_nulls(result[block])
    if "env" in result:
        # `variables` does not change: a variable without a value is a mistake.
        env = {key: value for key, value in result["env"].items() if value is not None}
        result["env"] = {k: _without_nulls(v) if k == "dependencies" else v for k, v in env.items()}
    result["study"] = [
        {**step, "run": _without_nulls(step["run"])} if isinstance(step, dict) and "run" in step else step
        for step in data["study"]
    ]
    return result


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    present = {key: item for key, item in value.items() if item is not None}
    if isinstance(present.get("workers"), dict):  # a group may have no keys
        present["workers"] = {name: {} if group is None else group for name, group in present["workers"].items()}
    return {key: _without_nulls(item) for key, item in present.items()}


def check_content(data: Mapping[str, Any], maestro: Mapping[str, Any], file: str) -> None:
    """Check every block against its schema, and the references between blocks.

    Args:
        data: The specification.
        maestro: The JSON schemas of Maestro's blocks.
        file: Name of the specification, for messages.

    Raises:
        SpecificationError: a value is invalid; the message contains the first problem only.
    """
    check_block(data["description"], maestro["DESCRIPTION"], file, "description")
    check_block(data.get("env") or {}, maestro["ENV"], file, "env")
    check_batch(data.get("batch") or {}, file, "batch")
    _check_shell((data.get("batch") or {}).get("shell"), file, "batch.shell")
    _check_parameters(data.get("global.parameters") or {}, maestro["PARAM"], file)
    for number, step in enumerate(data["study"]):
        _check_step(step, number, maestro["STUDY_STEP"], file)
    check_graph(data, file)
    check_block(data.get("merlin") or {}, conversion.json_schema(MerlinSettings), file, "merlin")
    for name, group in (((data.get("merlin") or {}).get("resources") or {}).get("workers") or {}).items():
        where = f"merlin.resources.workers.{name}.batch"
        check_batch(group.get("batch") or {}, file, where)
        if not group.get("machines"):  # other machines may have other programs
            _check_shell((group.get("batch") or {}).get("shell"), file, f"{where}.shell")
    check_names(data, file)


def check_block(block: Any, block_schema: Mapping[str, Any], file: str, where: str) -> None:
    """Check a block against a schema.

    Raises:
        SpecificationError: the block is invalid; the message contains the first problem only.
    """
    for path, message in problems(block, block_schema):
        raise SpecificationError.at(file, f"{where}.{path}".rstrip("."), message)


def settings_of(cls: type[T], block: Mapping[str, Any], file: str, where: str) -> T:
    """Return the settings of a block that has passed its checks.

    Raises:
        SpecificationError: a value is invalid although the checks accept it.
    """
    try:
        return conversion.from_dict(cls, block)
    except ValueError as cause:
        raise SpecificationError.at(file, where, f"{cause}.") from cause


def check_batch(block: Any, file: str, where: str) -> None:
    """Check the `batch` keys of a study, a worker group or a step.

    Raises:
        SpecificationError: the block is invalid; the message contains the first problem only.
    """
    block_schema = conversion.json_schema(BatchSettings)
    properties = block_schema["properties"]
    type_schema = {**properties["type"], "enum": [LOCAL, *batch_systems()]}
    check_block(block, {**block_schema, "properties": {**properties, "type": type_schema}}, file, where)
    if where != "batch" and block.get("dry_run"):
        raise SpecificationError.at(
            file,
            f"{where}.dry_run",
            "a dry run is one of the whole study; use `batch.dry_run`, or `maestro run --dry`.",
        )
    for key in _FREE_KEYS:
        check_free_block(block.get(key), file, f"{where}.{key}")


def _check_parameters(parameters: Mapping[str, Any], parameter_schema: Mapping[str, Any], file: str) -> None:
    first = next(iter(parameters), "")
    for name, parameter in parameters.items():
        where = f"global.parameters.{name}"
        check_block(parameter, parameter_schema, file, where)
        found, expected = len(parameter["values"]), len(parameters[first]["values"])
        if found != expected:
            raise SpecificationError.at(
                file,
                f"{where}.values",
                f"found {found} values, but '{first}' has {expected}; all parameters need the same number.",
            )
        label = str(parameter.get("label"))
        if "%%" not in label and len({str(value) for value in parameter["values"]}) > 1:
            LOGGER.warning(
                "%s: %s.label: '%s' has no '%%%%' for the value; add it. Otherwise, step records that differ only "
                "in %s have the same name, and Maestro runs only one of them.",
                file, where, label, name,
            )  # fmt: skip


def _check_step(step: Any, number: int, maestro: Mapping[str, Any], file: str) -> None:
    where = f"study[{number}]"
    if isinstance(step, dict) and isinstance(step.get("name"), str):
        where = f"study.{step['name']}"
    check_block(step, {**maestro, "properties": {**maestro["properties"], "run": {"type": "object"}}}, file, where)
    run = maestro["properties"]["run"]
    properties = {**run["properties"], **conversion.json_schema(StepSettings)["properties"]}
    check_block(step["run"], {**run, "properties": properties}, file, f"{where}.run")
    check_unused_keys(step["run"], file, f"{where}.run")
    check_batch(step["run"].get("batch", {}), file, f"{where}.run.batch")
    _check_shell(step["run"].get("shell"), file, f"{where}.run.shell")


def check_native(data: Mapping[str, Any], native: Set[str], file: str) -> None:
    """Check that Maestro can run the native steps.

    Raises:
        SpecificationError: a native step has a key that only workers support.
    """
    batch_type = (data.get("batch") or {}).get("type", "local")
    for step in data["study"]:
        if step["name"] in native:
            _check_native_step(step, batch_type, file)


def _check_native_step(step: Mapping[str, Any], batch_type: str, file: str) -> None:
    supported = () if batch_type in IGNORES_SHELL else (SHELL_KEY,)
    for key in STEP_SETTING_KEYS:
        if key in step["run"] and key not in supported:
            raise SpecificationError.at(
                file,
                f"study.{step['name']}.run.{key}",
                "Maestro runs this step itself (merlin.resources.unassigned: maestro) and does not support the key; "
                "remove it, or assign the step to a worker group.",
            )


def _check_shell(shell: str | None, file: str, where: str) -> None:
    """Check that an interpreter exists, unless its name contains a token."""
    if shell is None or names_in(shell):
        return
    try:
        words = shlex.split(shell)
    except ValueError as cause:
        raise SpecificationError.at(file, where, f'found "{shell}": {cause}; close the quotes.') from cause
    if not words or shutil.which(words[0]) is None:
        raise SpecificationError.at(
            file,
            where,
            f"found '{shell}', which is not a program on this machine; use a program such as /bin/bash or python3.",
        )
