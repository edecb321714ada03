"""The plugin manager: it registers the parts of this package and of extensions through the same hooks."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from maestro_celery_plugin import hookspecs
from maestro_celery_plugin.batch.base import BatchSystem, CurrentAllocation
from maestro_celery_plugin.batch.flux import Flux
from maestro_celery_plugin.batch.lsf import Lsf, LsfSrun
from maestro_celery_plugin.batch.slurm import Slurm
from maestro_celery_plugin.config.groups import LOCAL
from maestro_celery_plugin.errors import AllocationError, ExtensionError
from maestro_celery_plugin.hookspecs import HOOK_NAMESPACE, hookimpl
from maestro_celery_plugin.samples.csv_reader import CsvReader, TabReader
from maestro_celery_plugin.samples.npy_reader import NpyReader
from maestro_celery_plugin.samples.table import SUFFIXES, SampleTable, recorded_identity, verified_table

__all__ = ["batch_system", "batch_systems", "current_allocation", "may_be_read", "open_table", "plugin_manager"]


# The parts of this package have names that an entry point cannot have by accident.
_BUILT_IN = "maestro_celery_plugin:"


class _ReaderPlugin:
    """A reader of this package as an implementation of the hook `open_samples`."""

    def __init__(self, reader: NpyReader | CsvReader) -> None:
        self._reader = reader

    @hookimpl
    def open_samples(self, path: Path, labels: Sequence[str], cache: Path) -> SampleTable | None:
        return self._reader.open(path, labels, cache)


class _BatchSystemPlugin:
    """A batch system of this package as an implementation of the hook `batch_system`."""

    def __init__(self, system: BatchSystem) -> None:
        self._system = system

    @hookimpl
    def batch_system(self) -> BatchSystem:
        return self._system


@functools.lru_cache(maxsize=1)
def plugin_manager() -> pluggy.PluginManager:
    """Return the manager with all parts registered; the first call of a process builds it.

    Raises:
        ExtensionError: an extension cannot be loaded, or does not implement its hooks.
    """
    manager = pluggy.PluginManager(HOOK_NAMESPACE)
    manager.add_hookspecs(hookspecs)
    for reader in (NpyReader(), CsvReader(), TabReader()):
        manager.register(_ReaderPlugin(reader), name=f"{_BUILT_IN}{type(reader).__name__}")
    for system in (Slurm(), Lsf(), LsfSrun(), Flux()):
        manager.register(_BatchSystemPlugin(system), name=f"{_BUILT_IN}{system.type}")
    entries: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=HOOK_NAMESPACE):
        entries.setdefault(entry.name, []).append(entry)
    for name in sorted(entries):
        _check_has_own_name(name, entries[name])
        _load(manager, name)
    return manager


def _check_has_own_name(name: str, entries: Sequence[importlib.metadata.EntryPoint]) -> None:
    """Check that one entry point has a name; pluggy would load the first one and ignore the others.

    Raises:
        ExtensionError: several entry points have the name.
    """
    if len(entries) > 1:
        values = " and ".join(sorted(f"'{entry.value}'" for entry in entries))
        raise ExtensionError(
            f"The extension '{name}' cannot be loaded: {values} are entry points with this name; uninstall one of them."
        )


def _load(manager: pluggy.PluginManager, name: str) -> None:
    """Load an extension and check its batch systems.

    Raises:
        ExtensionError: it cannot be loaded, or one of its hooks is invalid.
    """
    try:
        manager.load_setuptools_entrypoints(HOOK_NAMESPACE, name)
        manager.check_pending()
        _check_has_hook(manager, name)
        systems = _systems_of(manager, name)
    except Exception as cause:  # an extension can raise any error
        text = " ".join(str(cause).split())
        raise ExtensionError(f"The extension '{name}' cannot be loaded: {text or type(cause).__name__}.") from cause
    for system in systems:
        _check_interface(system, BatchSystem, name, "batch_system")


def _check_has_hook(manager: pluggy.PluginManager, name: str) -> None:
    """Check that an extension implements a hook.

    Raises:
        ValueError: it has no function that is marked with `hookimpl`.
    """
    if not manager.get_hookcallers(manager.get_plugin(name)):
        known = ", ".join(sorted(vars(manager.hook)))
        raise ValueError(f"it implements no hook; mark a function with `hookimpl`; hooks: {known}")


def _systems_of(manager: pluggy.PluginManager, name: str) -> list[object]:
    """Return the batch systems of an extension."""
    systems: list[object] = _only(manager, name, "batch_system")()
    return systems


def _only(manager: pluggy.PluginManager, name: str, hook: str) -> pluggy.HookCaller:
    """Return a hook of one extension; pluggy leaves out a result of None, which means "not here"."""
    others = [plugin for other, plugin in manager.list_name_plugin() if other != name]
    return manager.subset_hook_caller(hook, others)


def _check_interface(value: object, protocol: type, extension: str, hook: str) -> None:
    """Check that an object of an extension has all attributes and methods of its interface.

    Raises:
        ExtensionError: an attribute or a method is missing or invalid.
    """
    fault = next(_interface_faults(value, protocol), None)
    if fault is not None:
        raise ExtensionError(
            f"The extension '{extension}' cannot be used: hook '{hook}': {type(value).__name__} {fault} of "
            f"{protocol.__name__}. Correct the extension, or uninstall it."
        )


def _interface_faults(value: object, protocol: type) -> Iterator[str]:
    for name in inspect.get_annotations(protocol):
        if not hasattr(value, name):
            yield f"has no attribute '{name}'"
    for name, member in vars(protocol).items():
        if isinstance(member, property) and not hasattr(value, name):
            yield f"has no attribute '{name}'"
        if not inspect.isfunction(member) or (name.startswith("_") and name != "__len__"):
            continue
        parameters = [p for p in inspect.signature(member).parameters if p != "self"]
        expected = f"'{name}({', '.join(parameters)})'"
        method = getattr(value, name, None)
        if not callable(method):
            yield f"has no method {expected}"
        elif not _accepts(method, len(parameters)):
            yield f"has a method '{name}' that does not accept the arguments of {expected}"


def _accepts(method: Any, count: int) -> bool:
    try:
        inspect.signature(method).bind(*[None] * count)
    except TypeError:
        return False
    return True


def batch_systems() -> dict[str, BatchSystem]:
    """Return all registered batch systems by `batch.type`."""
    return {system.type: system for system in reversed(plugin_manager().hook.batch_system())}


def batch_system(type: str) -> BatchSystem | None:
    """Return the batch system of a `batch.type`; None for `local`.

    Raises:
        AllocationError: no batch system is registered for the type.
    """
    if type == LOCAL:
        return None
    systems = batch_systems()
    if type not in systems:
        raise AllocationError(f"unknown batch type '{type}'; known types are {', '.join((LOCAL, *systems))}.")
    return systems[type]


def current_allocation(batch_type: str) -> CurrentAllocation | None:
    """Return the allocation of a batch type around this process; None outside of one, and for `local`."""
    system = batch_system(batch_type)
    return system.current_allocation(os.environ) if system else None


def may_be_read(file: str) -> bool:
    """Tell whether a reader may exist for a sample file with this name; an extension may read files of any name."""
    readers = plugin_manager().hook.open_samples.get_hookimpls()
    has_extension = any(not reader.plugin_name.startswith(_BUILT_IN) for reader in readers)
    return has_extension or Path(file).suffix in SUFFIXES


def open_table(path: Path, labels: Sequence[str], cache: Path, rows: int | None = None) -> SampleTable:
    """Open the sample table with the reader for its kind, and check it.

    Args:
        path: The file.
        labels: The column labels.
        cache: Directory for the index and for the identity of the file at the launch.
        rows: The number of rows at the launch; None at the launch itself.

    Raises:
        SampleError: the file does not exist, no reader supports it, it has no row, its columns do not match the labels,
            or it has changed since the launch.
    """
    identity = recorded_identity(path, cache)
    arguments = {"path": path, "labels": labels, "cache": cache}
    table = plugin_manager().hook.open_samples(**arguments)
    if table is not None and next(_interface_faults(table, SampleTable), None) is not None:
        _check_interface(table, SampleTable, _opener(arguments), "open_samples")
    return verified_table(table, identity, labels, rows)


def _opener(arguments: Mapping[str, Any]) -> str:
    """Return the name of the extension that opens a sample table, in the order of the hook."""
    manager = plugin_manager()
    names = [implementation.plugin_name for implementation in reversed(manager.hook.open_samples.get_hookimpls())]
    return next(name for name in names if _only(manager, name, "open_samples")(**arguments) is not None)
