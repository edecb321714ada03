"""The keys of `batch` that the user's configuration adds to a specification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.config.user_configuration import batch_defaults, configuration_path, read_configuration
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.spec.checks import check_batch
from maestro_celery_plugin.spec.problems import passed

__all__ = ["defaults_for", "without_nulls"]


def defaults_for(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `batch` from the user's configuration that a specification does not have.

    They belong to a batch system: a specification that names another one takes none of them. A study that exists keeps
    those of its launch.

    Raises:
        ConfigurationError: the configuration cannot be used.
        SpecificationError: a key cannot be used; the message names the configuration.
    """
    defaults = OPTIONS.batch_defaults
    if defaults is None:
        defaults = batch_defaults(read_configuration(), host_name())
        passed(check_batch(defaults, "batch"), str(configuration_path()))
    own = without_nulls(batch)
    if "type" in own and own["type"] != defaults.get("type", own["type"]):
        return {}
    return {key: value for key, value in defaults.items() if key not in own}


def without_nulls(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a block that have a value."""
    return {key: value for key, value in block.items() if value is not None}
