"""The plan of a study as Maestro stores it: the values of ``batch.info``, with their types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.settings import EnsembleSettings
from maestro_celery_plugin.config.stored import Count, Word

__all__ = ["StoredPlan", "path_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """Maestro's batch dictionary; `StudyPlan` describes the values. All releases store the keys without a default."""

    study: Annotated[Word, Meta(min_length=1)]
    timestamp: str
    settings: EnsembleSettings
    table: Word | None
    rows: Count
    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{1,16}$")] = "0"
    planned: Count = 0
    specification: Word | None = None
    batch_defaults: dict[str, Any] | None = None
    vars: dict[str, Any] | None = None
    samplesfile: Word | None = None
    no_errors: bool = False
    home: Word | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> StoredPlan:
        """Return the values of a dictionary.

        Raises:
            KeyError: it has not all keys.
            ValueError: a value is wrong.
        """
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING and field.name not in batch:
                raise KeyError(field.name)
        return conversion.from_dict(cls, batch)


def path_of(text: str | None) -> Path | None:
    """Return the path in a stored text; None without one."""
    return Path(text) if text else None
