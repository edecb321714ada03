"""Differences between two versions of a specification, and whether a study that has begun can take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Difference", "differences"]

# Keys of a step that decide which step records a study has, and who runs them.
_FIXED_STEP_KEYS = ("depends", "task_queue")
# Keys of a worker group that a study can take.
_GROUP_KEYS = ("args", "nodes", "procs", "gpus", "batch", "idle_limit", "drain", "warn")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A key with another value in the new version.

    Attributes:
        path: The key with its blocks; a step is named, not numbered.
        old: The value in the old version; None without one.
        new: The value in the new version; None without one.
    """

    path: tuple[str, ...]
    old: Any
    new: Any

    @property
    def where(self) -> str:
        """The dotted path of the key, for messages."""
        return ".".join(self.path)

    @property
    def is_correction(self) -> bool:
        """Whether a study that has begun can take the change."""
        match self.path:
            case ("description", "description") | ("study", _, "description") | ("user", *_):
                return True
            case ("study", _, "run", key, *rest):
                return key not in _FIXED_STEP_KEYS and (key, *rest[:1]) != ("batch", "type")
            case ("merlin", "resources", "workers", _, key, *rest):
                return key in _GROUP_KEYS and (key, *rest[:1]) != ("batch", "type")
            case ("merlin", "notify"):
                return True
            case ("merlin", "samples", "max_samples"):  # the levels of the sample hierarchy stay
                return True
            case ("batch", key, *_):
                return key != "type"
        return False


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return the keys that differ; the order of steps and of worker groups counts as a key of its own."""
    before, after = dict(_flat(old)), dict(_flat(new))
    paths = dict.fromkeys((*before, *after))
    return [Difference(p, before.get(p), after.get(p)) for p in paths if before.get(p) != after.get(p)]


def _flat(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value with its path; keys without a value count as absent."""
    study = data.get("study")
    steps = [step for step in study if isinstance(step, Mapping)] if isinstance(study, list) else []
    yield ("study",), [str(step.get("name")) for step in steps]
    resources = (data.get("merlin") or {}).get("resources") or {}
    yield ("merlin", "resources", "workers"), list(resources.get("workers") or {})
    for step in steps:
        yield from _values(("study", str(step.get("name"))), step)
    for block, value in data.items():
        if block != "study":
            yield from _values((str(block),), value)


def _values(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values((*path, str(key)), inner)
    elif value is not None:
        yield path, value
