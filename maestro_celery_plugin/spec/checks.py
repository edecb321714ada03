"""Checks of a specification, block by block; each problem has its key, what was found, and what is allowed."""

from __future__ import annotations

import difflib
import shlex
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from typing import Any, TypeVar

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.schema_errors import problems
from maestro_celery_plugin.config.settings import BatchSettings, MerlinSettings, StepSettings
from maestro_celery_plugin.config.step_entry import SHELL_KEY
from maestro_celery_plugin.config.tokens import names_in
from maestro_celery_plugin.spec.dag import check_graph
from maestro_celery_plugin.spec.plain_data import check_free_block, check_plain
from maestro_celery_plugin.spec.problems import Checked, FaultError, Kind, Problem
from maestro_celery_plugin.spec.schemas import batch_schema, run_schema
from maestro_celery_plugin.spec.step_keys import check_unused_keys
from maestro_celery_plugin.spec.token_checks import check_names
from maestro_celery_plugin.spec.valid_part import valid_part

__all__ = [
    "BLOCKS",
    "STEP_SETTING_KEYS",
    "blocks_of",
    "check_batch",
    "check_block",
    "check_blocks",
    "check_content",
    "check_native",
    "check_shape",
    "known_batch",
    "known_blocks",
    "settings_of",
    "without_empty_keys",
]

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


def known_blocks(data: Mapping[str, Any]) -> Checked[dict[str, Any]]:
    """Return the blocks that the plugin or Maestro uses; warn of the others, which a parameter generator may read."""
    return _known(data, BLOCKS, _BLOCK_SIMILARITY, "block", "")


def known_batch(block: Any) -> Checked[Any]:
    """Return `batch` without unknown keys; warn of them: Maestro ignores them, and other programs may read them."""
    if not isinstance(block, Mapping):
        return block
    return (yield from _known(block, conversion.keys_of(BatchSettings), _KEY_SIMILARITY, "key", "batch"))


def _known(
    block: Mapping[str, Any], names: Collection[str], similarity: float, kind: str, where: str
) -> Checked[dict[str, Any]]:
    """Return the keys with a known name; a key that is probably misspelt is a fault, and gets its right name."""
    known = {}
    for key, value in block.items():
        name = str(key)
        if key not in names:
            absent = [name for name in names if name not in block and name not in known]
            close = difflib.get_close_matches(name, absent, n=1, cutoff=similarity)
            if not close:
                yield Problem(where, f"the unknown {kind} {name!r} is ignored.", Kind.WARNING)
                continue
            yield Problem(where, f"unknown {kind} '{name}'; did you mean '{close[0]}'?")
            name = close[0]
        known[name] = value
    return known


def check_shape(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that the top-level blocks have the right type, and that all keys and text can be used.

    This check precedes the insertion of variables.
    """
    yield from check_plain(data)
    for block, kind, name in (("description", dict, "a block of keys"), ("study", list, "a list of steps")):
        if not isinstance(data.get(block), kind) or not data[block]:
            yield Problem(block, f"the block is missing or empty; {name} is needed.")
    for block in ("env", "batch", "global.parameters", "merlin"):
        yield from _check_is_block(data.get(block), block)
    environment = data.get("env") or {}
    for block in ("variables", "labels", "dependencies") if isinstance(environment, dict) else ():
        yield from _check_is_block(environment.get(block), f"env.{block}")


def blocks_of(problems: Iterable[Problem]) -> set[str]:
    """Return the blocks in which problems stand; an empty name for the whole file."""
    places = [f"{problem.where.replace('[', '.')}." for problem in problems]
    return {next((block for block in BLOCKS if place.startswith(f"{block}.")), "") for place in places}


def _check_is_block(value: Any, where: str) -> Iterator[Problem]:
    if value is not None and not isinstance(value, dict):
        yield from check_block(value, {"type": "object"}, where)


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


def check_content(data: Mapping[str, Any], maestro: Mapping[str, Any]) -> Checked[Mapping[str, Any]]:
    """Check every block against its schema, and the references between blocks.

    Args:
        data: The specification.
        maestro: The JSON schemas of Maestro's blocks.

    Returns:
        The specification without values that have faults, for further checks.
    """
    faults = list(check_blocks(data, maestro))
    yield from faults
    if any(problem.kind is Kind.FAULT for problem in faults):
        data = valid_part(data, maestro)
    yield from check_graph(data)
    yield from check_names(data)
    return data


def check_blocks(data: Mapping[str, Any], maestro: Mapping[str, Any]) -> Iterator[Problem]:
    """Check every block against its schema, and that all parameters have the same number of values."""
    yield from check_block(data["description"], maestro["DESCRIPTION"], "description")
    yield from check_block(data.get("env") or {}, maestro["ENV"], "env")
    yield from check_batch(data.get("batch") or {}, "batch")
    yield from _check_shell((data.get("batch") or {}).get("shell"), "batch.shell")
    yield from _check_parameters(data.get("global.parameters") or {}, maestro["PARAM"])
    for number, step in enumerate(data["study"]):
        yield from _check_step(step, number, maestro["STUDY_STEP"])
    merlin = data.get("merlin") or {}
    yield from check_block(merlin, conversion.json_schema(MerlinSettings), "merlin")
    for name, group in _blocks_in(_block_in(_block_in(merlin, "resources"), "workers")):
        batch, where = _block_in(group, "batch"), f"merlin.resources.workers.{name}.batch"
        yield from check_batch(batch, where)
        if not group.get("machines"):  # other machines may have other programs
            yield from _check_shell(batch.get("shell"), f"{where}.shell")


def _block_in(block: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an inner block; an empty one if it is absent or no block."""
    value = block.get(key)
    return value if isinstance(value, Mapping) else {}


def _blocks_in(block: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, value) for name, value in block.items() if isinstance(value, Mapping)]


def check_block(block: Any, block_schema: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Check a block against a schema."""
    for path, message in problems(block, block_schema):
        yield Problem(f"{where}.{path}".rstrip("."), message)


def settings_of(cls: type[T], block: Mapping[str, Any], where: str) -> T:
    """Return the settings of a block that has passed its checks.

    Raises:
        FaultError: a value is invalid although the checks accept it.
    """
    try:
        return conversion.from_dict(cls, block)
    except ValueError as cause:
        raise FaultError(where, f"{cause}.") from cause


def check_batch(block: Any, where: str) -> Iterator[Problem]:
    """Check the `batch` keys of a study, a worker group or a step."""
    yield from check_block(block, batch_schema(), where)
    if where != "batch" and block.get("dry_run"):
        text = "a dry run is one of the whole study; use `batch.dry_run`, or `maestro run --dry`."
        yield Problem(f"{where}.dry_run", text)
    for key in _FREE_KEYS:
        yield from check_free_block(block.get(key), f"{where}.{key}")


def _check_parameters(parameters: Mapping[str, Any], parameter_schema: Mapping[str, Any]) -> Iterator[Problem]:
    first, expected = "", 0
    for name, parameter in parameters.items():
        where = f"global.parameters.{name}"
        faults = list(check_block(parameter, parameter_schema, where))
        yield from faults
        if faults:
            continue
        found = len(parameter["values"])
        first, expected = (first, expected) if first else (name, found)
        if found != expected:
            text = f"found {found} values, but '{first}' has {expected}; all parameters need the same number."
            yield Problem(f"{where}.values", text)
        label = str(parameter.get("label"))
        if "%%" not in label and len({str(value) for value in parameter["values"]}) > 1:
            yield Problem(
                f"{where}.label",
                f"'{label}' has no '%%' for the value; add it. Otherwise, step records that differ only in {name} "
                "have the same name, and Maestro runs only one of them.",
                Kind.WARNING,
            )


def _check_step(step: Any, number: int, maestro: Mapping[str, Any]) -> Iterator[Problem]:
    where = f"study[{number}]"
    if isinstance(step, dict) and isinstance(step.get("name"), str) and step["name"]:
        where = f"study.{step['name']}"
    schema = {**maestro, "properties": {**maestro["properties"], "run": {"type": "object"}}}
    yield from check_block(step, schema, where)
    run = step.get("run") if isinstance(step, dict) else None
    if isinstance(run, dict):
        batch = _block_in(run, "batch")
        yield from check_block(run, run_schema(maestro), f"{where}.run")
        yield from check_unused_keys(run, f"{where}.run")
        yield from check_batch(batch, f"{where}.run.batch")
        yield from _check_shell(run.get("shell"), f"{where}.run.shell")
        yield from _check_shell(batch.get("shell"), f"{where}.run.batch.shell")


def check_native(data: Mapping[str, Any], native: Set[str]) -> Iterator[Problem]:
    """Check that Maestro can run the native steps: no native step has a key that only workers support."""
    batch_type = (data.get("batch") or {}).get("type", "local")
    for step in data["study"]:
        if step["name"] in native:
            yield from _check_native_step(step, batch_type)


def _check_native_step(step: Mapping[str, Any], batch_type: str) -> Iterator[Problem]:
    supported = () if batch_type in IGNORES_SHELL else (SHELL_KEY,)
    for key in STEP_SETTING_KEYS:
        if key in step["run"] and key not in supported:
            yield Problem(
                f"study.{step['name']}.run.{key}",
                "Maestro runs this step itself (merlin.resources.unassigned: maestro) and does not support the key; "
                "remove it, or assign the step to a worker group.",
            )


def _check_shell(shell: Any, where: str) -> Iterator[Problem]:
    """Check that an interpreter exists, unless its name contains a token."""
    if not isinstance(shell, str) or not shell or names_in(shell):
        return
    try:
        words = shlex.split(shell)
    except ValueError as cause:
        yield Problem(where, f'found "{shell}": {cause}; close the quotes.')
        return
    if not words or shutil.which(words[0]) is None:
        text = f"found '{shell}', which is not a program on this machine; use a program such as /bin/bash or python3."
        yield Problem(where, text, Kind.MACHINE)
