"""The limits of a study that a user may change: Maestro forgets those of `maestro update` with its conductor.

`maestro update` writes them to a file that the conductor reads once (conductor.py:262). The plugin also stores them in
``merlin_info/limits.json``, and `resume` writes them to Maestro's pickle of the study.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.files import read_json, read_text, replaced, write_atomically
from maestro_celery_plugin.maestro.step_graph import load_study, pickle_of
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["Limits", "apply_limits", "store_update"]

# Maestro's attributes of a study (study.py:455), by the names in `Limits`.
_ATTRIBUTES = {
    "throttle": "_submission_throttle",
    "rlimit": "_restart_limit",
    "attempts": "_submission_attempts",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a study, with the names of Maestro's options; None for one that does not change.

    Attributes:
        throttle: Maximum number of step records in progress; 0 for any.
        rlimit: Maximum number of restarts of a step record; 0 for any.
        attempts: Maximum number of submissions of a step record.
        sleep: Seconds between two polls of the conductor.
    """

    throttle: int | None = None
    rlimit: int | None = None
    attempts: int | None = None
    sleep: int | None = None

    def merged(self, later: Limits) -> Limits:
        """Return these limits with the changes of later ones."""
        changes = {name: value for name, value in vars(later).items() if value is not None}
        return dataclasses.replace(self, **changes)


def store_update(plan: StudyPlan, update: Mapping[str, Any]) -> Limits:
    """Store limits that a user has set; return all that users have set since the launch.

    Args:
        plan: The study.
        update: The limits by name; unknown names and values that are no counts are ignored.

    Raises:
        OSError: they cannot be stored.
    """
    stored = _read(plan)
    limits = stored.merged(_from(update))
    if limits != stored:
        write_atomically(_file(plan), json.dumps(vars(limits)))
    return limits


def apply_limits(plan: StudyPlan, later: Limits) -> Limits:
    """Let the next conductor of a study use the stored limits and later ones; return them.

    Raises:
        OSError: a file of the study cannot be written.
        StudyError: the pickle of the study cannot be read.
    """
    # A request that no conductor has read would overrule the later limits.
    limits = store_update(plan, vars(_from(_pending(plan)).merged(later)))
    changes = {_ATTRIBUTES[name]: value for name, value in vars(limits).items() if name in _ATTRIBUTES}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        study = load_study(plan.root)
        if any(getattr(study, name) != value for name, value in changes.items()):
            import dill  # with Maestro's pickles only

            vars(study).update(changes)
            with replaced(pickle_of(plan.root)) as pickle:
                pickle.write(dill.dumps(study))
    plan.update_request.unlink(missing_ok=True)
    return limits


def _file(plan: StudyPlan) -> Path:
    return plan.info / "limits.json"


def _read(plan: StudyPlan) -> Limits:
    """Return the stored limits; a damaged file counts as none."""
    with contextlib.suppress(FileNotFoundError, DamagedFileError):
        return _from(read_json(_file(plan)))
    return Limits()


def _pending(plan: StudyPlan) -> Any:
    """Return the update that no conductor has read."""
    with contextlib.suppress(FileNotFoundError, yaml.YAMLError, ValueError):
        return parsed_yaml(read_text(plan.update_request))
    return None


def _from(update: Any) -> Limits:
    values = update if isinstance(update, Mapping) else {}
    names = (field.name for field in dataclasses.fields(Limits))
    return Limits(**{name: values[name] for name in names if _is_limit(values.get(name))})


def _is_limit(value: Any) -> bool:
    """Whether a value is a count; a damaged file may have any value, and a negative time would end the conductor."""
    return type(value) is int and 0 <= value < 2**31
