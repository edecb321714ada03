"""Whether a specification has an ensemble: a ``merlin`` block, or a step key that Maestro does not have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from maestro_celery_plugin.maestro.schemas import maestro_schemas
from maestro_celery_plugin.spec.problems import Checked, Problem

__all__ = ["WORDS_OF_ENSEMBLES", "find_ensemble", "has_merlin_block", "may_have_ensemble", "yaml_problem"]

# A word of each block and step key that Maestro does not have. A backslash may stand for any letter.
WORDS_OF_ENSEMBLES = re.compile(
    r"merlin|resources|samples|task_queue|max_|retry_|time_request|gpus per task|resource set|launch[ _]distribution|"
    r"exit_on_error|shell|batch|signal|slurm|lsf|flux|\\"
)


def has_merlin_block(data: bytes) -> bool:
    """Tell whether the text of a specification, which may be no valid YAML, has a ``merlin`` block.

    In UTF-16, every second byte of these letters is 0.
    """
    return re.search(rb"^merlin\s*:", data.replace(b"\0", b""), re.MULTILINE) is not None


def may_have_ensemble(text: Any) -> bool:
    """Tell whether a specification has a word of an ensemble; without one, only Maestro needs to parse it."""
    return not isinstance(text, str) or WORDS_OF_ENSEMBLES.search(text.replace("\0", "")) is not None


def find_ensemble(data: dict[str, Any], repeated: Iterable[tuple[str, str]]) -> Checked[dict[str, Any] | None]:
    """Return the specification, with the right name of the `merlin` block; None if it has no ensemble.

    Args:
        data: The specification.
        repeated: The keys that stand twice in a block; a fault if the specification has an ensemble.
    """
    named: dict[str, Any] = {}
    for block, value in data.items():
        if block != "merlin" and _resembles_merlin(block, value):
            yield Problem("", f"unknown block '{block}'; did you mean 'merlin'?")
            named.setdefault("merlin", value)
        else:
            if block in ("resources", "samples") and "merlin" in data:
                yield Problem("", f"unknown block '{block}'; put it into the block 'merlin': check the indentation.")
            named[block] = value
    if "merlin" not in named and not _has_step_key(named.get("study")):
        return None
    for where, text in repeated:
        yield Problem(where, text)
    return named


def _resembles_merlin(name: Any, block: Any) -> bool:
    """Tell whether a block is a ``merlin`` block with a misspelt name: the name is similar, and it has a key of it.

    Maestro ignores other blocks that it does not know.
    """
    is_similar = bool(difflib.get_close_matches(str(name), ["merlin"], cutoff=0.8))
    return is_similar and isinstance(block, dict) and not block.keys().isdisjoint(("resources", "samples"))


def yaml_problem(cause: Exception) -> tuple[str, str]:
    """Return the position and the message of a YAML error."""
    mark = getattr(cause, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(cause, "problem", None) or " ".join(str(cause).split())
    return where, f"invalid YAML: {problem}; check the indentation, quotes and colons in this line and before it."


def _has_step_key(study: Any) -> bool:
    """Tell whether a step has a key of the plugin, which Maestro alone does not support."""
    if not isinstance(study, list):
        return False
    runs = [step["run"] for step in study if isinstance(step, dict) and isinstance(step.get("run"), dict)]
    of_maestro = maestro_schemas()["STUDY_STEP"]["properties"]["run"]["properties"]
    others = {key for run in runs for key in run if key not in of_maestro}
    if not others:
        return False
    from maestro_celery_plugin.spec.checks import STEP_SETTING_KEYS

    return not others.isdisjoint(STEP_SETTING_KEYS)
