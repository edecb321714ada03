"""Placeholders of a template that nobody has filled in, such as `<INSERT PATH TO VIRTUALENV HERE>`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from maestro_celery_plugin.spec.problems import Problem

__all__ = ["check_placeholders"]

# Two or more words in capitals, because a value such as `<B>` can have a meaning.
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9]*(?:[ _-]+[A-Z0-9]+)+>")


def check_placeholders(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that no variable is a placeholder; in a command, the shell would read it as a redirection.

    Args:
        data: The specification, with the values of variables.
    """
    for name, value in ((data.get("env") or {}).get("variables") or {}).items():
        if isinstance(value, str) and _PLACEHOLDER.fullmatch(value.strip()):
            yield Problem(f"env.variables.{name}", f"found the placeholder '{value}'; replace it with a value.")
