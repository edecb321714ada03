"""The steps of a specification that run for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.config.tokens import SAMPLE_TOKENS, NameMatcher, names_in, substitute

__all__ = ["sampled_steps"]


def sampled_steps(data: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the steps whose own `cmd` or `restart` has a token of a sample."""
    samples = (data.get("merlin") or {}).get("samples")
    if samples is None:
        return frozenset()
    env = data.get("env") or {}
    texts = {name: str(value) for name, value in (env.get("labels") or {}).items()}
    other_names = {*(data.get("global.parameters") or {}), *(env.get("variables") or {}), *texts}
    matcher = NameMatcher((*samples["column_labels"], *SAMPLE_TOKENS))

    def is_sampled(run: Mapping[str, Any]) -> bool:
        used = {name for key in ("cmd", "restart") for name in names_in(substitute(run.get(key) or "", texts))}
        return any(matcher.match(name) for name in used - other_names)

    return frozenset(step["name"] for step in data["study"] if is_sampled(step["run"]))
