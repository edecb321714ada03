"""The import of a command for the completion of a command line: its options, without the code that it would call.

A shell that completes `maestro-celery samples --st` waits for the answer. The options of `samples` are a few lines,
but the modules that the command calls import NumPy and Maestro. So stand-ins take the place of these modules while the
module of the command is imported; nothing of the command runs.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["declarations_only"]

# What the declaration of a command needs.
_REAL = ("click", "maestro_celery_plugin.cli")


class _StandIn:
    """Stands for any function, class or value; a class may derive from it."""

    def __getattr__(self, name: str) -> _StandIn:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _StandIn:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


class _Module(types.ModuleType):
    """Has every name that a module imports from it."""

    def __getattr__(self, name: str) -> _StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for each module that is neither of Python nor in `_REAL`."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in sys.stdlib_module_names or fullname.startswith(_REAL):
            return None
        self.names.append(fullname)
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def declarations_only() -> Iterator[None]:
    """Import stand-ins instead of modules; afterwards, an import finds the modules themselves."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.names:
            sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)
