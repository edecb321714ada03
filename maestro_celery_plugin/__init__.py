"""Ensembles of samples for Maestro studies, distributed by Celery.

`__all__` names what an extension imports; see `hookspecs.py` for the hooks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maestro_celery_plugin.batch.base import BatchSystem, CurrentAllocation, JobReport
    from maestro_celery_plugin.config.groups import GroupConfig
    from maestro_celery_plugin.config.resources import StepNeeds
    from maestro_celery_plugin.config.settings import BatchSettings
    from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError, SampleError
    from maestro_celery_plugin.hookspecs import Attempt, hookimpl
    from maestro_celery_plugin.samples.table import SampleTable
    from maestro_celery_plugin.states import AllocationState

__all__ = [
    "AllocationError",
    "AllocationState",
    "Attempt",
    "BatchSettings",
    "BatchSystem",
    "BatchSystemUnavailableError",
    "CurrentAllocation",
    "GroupConfig",
    "JobReport",
    "SampleError",
    "SampleTable",
    "StepNeeds",
    "__version__",
    "hookimpl",
]

__version__ = "0.1.0"

# Names are imported at their first use (PEP 562): `maestro status` loads this package and uses none of them.
_MODULES = {
    "AllocationError": "errors",
    "AllocationState": "states",
    "Attempt": "hookspecs",
    "BatchSettings": "config.settings",
    "BatchSystem": "batch.base",
    "BatchSystemUnavailableError": "errors",
    "GroupConfig": "config.groups",
    "CurrentAllocation": "batch.base",
    "JobReport": "batch.base",
    "SampleError": "errors",
    "SampleTable": "samples.table",
    "StepNeeds": "config.resources",
    "hookimpl": "hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
