"""Ensembles of samples for Maestro studies, distributed by Celery.

`__all__` names what a script and an extension import; see `api.py` for studies in Python, and `hookspecs.py` for the
hooks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maestro_celery_plugin.api import SampleRow, Samples, Study
    from maestro_celery_plugin.batch.base import BatchSystem, CurrentAllocation, JobReport
    from maestro_celery_plugin.config.groups import GroupConfig
    from maestro_celery_plugin.config.resources import StepNeeds
    from maestro_celery_plugin.config.settings import BatchSettings
    from maestro_celery_plugin.errors import (
        AllocationError,
        BatchSystemUnavailableError,
        EnsembleError,
        ExpressionError,
        MissingPackageError,
        SampleError,
        StudyError,
        StudyTimeoutError,
    )
    from maestro_celery_plugin.hookspecs import Attempt, hookimpl
    from maestro_celery_plugin.report.exit_codes import StudyCode
    from maestro_celery_plugin.report.model import StudyStatus
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
    "EnsembleError",
    "ExpressionError",
    "GroupConfig",
    "JobReport",
    "MissingPackageError",
    "SampleError",
    "SampleRow",
    "SampleTable",
    "Samples",
    "StepNeeds",
    "Study",
    "StudyCode",
    "StudyError",
    "StudyStatus",
    "StudyTimeoutError",
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
    "CurrentAllocation": "batch.base",
    "EnsembleError": "errors",
    "ExpressionError": "errors",
    "GroupConfig": "config.groups",
    "JobReport": "batch.base",
    "MissingPackageError": "errors",
    "SampleError": "errors",
    "SampleRow": "api",
    "SampleTable": "samples.table",
    "Samples": "api",
    "StepNeeds": "config.resources",
    "Study": "api",
    "StudyCode": "report.exit_codes",
    "StudyError": "errors",
    "StudyStatus": "report.model",
    "StudyTimeoutError": "errors",
    "hookimpl": "hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
