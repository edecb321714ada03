"""Old pickles: modules of version 0.1 that Maestro's pickle of a study refers to.

Maestro pickles a study with its dependencies when `maestro run` launches it; the conductor of a resumed study reads the
pickle. The pickle of a study of version 0.1 contains the module names of that version.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["FORMER_NAMES", "install"]

# Module of version 0.1 → the module that contains its classes now.
FORMER_NAMES = {"maestro_celery_plugin.launch": "maestro_celery_plugin.maestro.launch"}
# Module of version 0.1 whose objects are not used: this version reads the settings of a study from its ``batch.info``.
UNUSED = "maestro_celery_plugin.settings"


class _FormerModule(ModuleType):
    """A module with the attributes of another module, which the first access imports."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(FORMER_NAMES[self.__name__]), name)


class _UnusedModule(ModuleType):
    """A module that has each class, without a method."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def install() -> None:
    """Make the modules of version 0.1 importable."""
    for name in FORMER_NAMES:
        sys.modules.setdefault(name, _FormerModule(name))
    sys.modules.setdefault(UNUSED, _UnusedModule(UNUSED))
