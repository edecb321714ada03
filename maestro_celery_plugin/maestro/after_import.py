"""The replacement of names in modules of Maestro: now, or after the import of the module."""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from maestro_celery_plugin.errors import UnsupportedMaestroError

__all__ = ["STEP_RECORD_MODULE", "Touchpoint", "apply_deferred", "apply_touchpoints"]

# The module of Maestro's step records, which imports the plugin before it defines them.
STEP_RECORD_MODULE = "maestrowf.datastructures.core.executiongraph"


@dataclasses.dataclass(frozen=True)
class Touchpoint:
    """One name in Maestro that the plugin replaces.

    Attributes:
        module: The module.
        name: The name in it.
        relies_on: The line of maestrowf 1.2 that uses the name.
        replace: Returns the replacement of the original object.
        replacement: The module of the replacement, if this module imports the original.
    """

    module: str
    name: str
    relies_on: str
    replace: Callable[[Any], Any]
    replacement: str | None = None

    def apply(self, module: ModuleType) -> None:
        """Replace the name in the module.

        Raises:
            UnsupportedMaestroError: the module does not have the name.
        """
        self.check(module)
        setattr(module, self.name, self.replace(getattr(module, self.name)))

    def check(self, module: ModuleType) -> None:
        """Check that the module has the name.

        Raises:
            UnsupportedMaestroError: the module does not have the name.
        """
        if not hasattr(module, self.name):
            raise UnsupportedMaestroError(
                f"maestro-celery-plugin does not support this version of maestrowf: {self.module} has no "
                f"'{self.name}' ({self.relies_on}). Install 'maestrowf>=1.2,<1.3', or uninstall "
                "maestro-celery-plugin."
            )


_DEFERRED: list[tuple[Touchpoint, ModuleType]] = []


def apply_touchpoints(touchpoints: Sequence[Touchpoint]) -> None:
    """Apply each touchpoint, now or after the import of its module; a second call does nothing.

    Maestro finds the plugin while `maestrowf.maestro` and `maestrowf.conductor` are partially imported. Touchpoints for
    names that they have not defined yet are deferred.
    """
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    later: dict[str, list[Touchpoint]] = {}
    for touchpoint in touchpoints:
        module = _loaded(touchpoint.module)
        if module is None:
            later.setdefault(touchpoint.module, []).append(touchpoint)
        elif hasattr(module, touchpoint.name):
            touchpoint.apply(module)
        else:
            _DEFERRED.append((touchpoint, module))
    sys.meta_path.insert(0, _AfterImport(later))


def apply_deferred(module: str | None = None) -> None:
    """Apply the deferred touchpoints of a module that is complete now.

    Args:
        module: The module; None for all, when Maestro builds its command line.
    """
    due = [one for one in _DEFERRED if module in (None, one[0].module)]
    _DEFERRED[:] = [one for one in _DEFERRED if one not in due]
    for touchpoint, imported in due:
        _apply_or_exit(touchpoint, imported)


def _loaded(name: str) -> ModuleType | None:
    """Return a module that is imported at least partially, or that runs as a script; None otherwise."""
    main = sys.modules.get("__main__")
    if main is not None and getattr(main.__spec__, "name", None) == name:
        return main
    return sys.modules.get(name)


def _apply_or_exit(touchpoint: Touchpoint, module: ModuleType) -> None:
    """Apply a touchpoint; exit if this Maestro is not supported, because a study must not run without its ensemble."""
    try:
        touchpoint.apply(module)
    except UnsupportedMaestroError as error:
        sys.exit(f"error: {error}")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds modules with the other finders, and applies touchpoints after the execution of a module."""

    def __init__(self, touchpoints: dict[str, list[Touchpoint]]) -> None:
        self._touchpoints = touchpoints

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module with touchpoints, with a loader that applies them; None for other modules."""
        touchpoints = self._touchpoints.pop(fullname, None)
        if touchpoints is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _TouchpointLoader(spec.loader, touchpoints)
        return spec


class _TouchpointLoader(importlib.abc.Loader):
    """Executes a module with its own loader, then applies touchpoints."""

    def __init__(self, loader: importlib.abc.Loader, touchpoints: list[Touchpoint]) -> None:
        self._loader, self._touchpoints = loader, touchpoints

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create the module with its own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then apply its touchpoints."""
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        for touchpoint in self._touchpoints:
            if touchpoint.replacement in sys.modules:
                # The replacement imports the original just now, and is not complete yet. Maestro needs it when it
                # builds its command line; another process does not need it.
                _DEFERRED.append((touchpoint, module))
            else:
                _apply_or_exit(touchpoint, module)
