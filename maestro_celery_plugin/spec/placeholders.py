"""Placeholders of a template that nobody has filled in, such as `<INSERT PATH TO VIRTUALENV HERE>`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.errors import SpecificationError

__all__ = ["check_placeholders"]

# Two or more words in capitals, because a value such as `<B>` can have a meaning.
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9]*(?:[ _-]+[A-Z0-9]+)+>")


def check_placeholders(data: Mapping[str, Any], file: str) -> None:
    """Check that no variable is a placeholder; in a command, the shell would read it as a redirection.

    Args:
        data: The specification, with the values of variables.
        file: Name of the specification, for messages.

    Raises:
        SpecificationError: the value of a variable is a placeholder.
    """
    for name, value in ((data.get("env") or {}).get("variables") or {}).items():
        if isinstance(value, str) and _PLACEHOLDER.fullmatch(value.strip()):
            raise SpecificationError.at(
                file,
                f"env.variables.{name}",
                f"found the placeholder '{value}'; replace it with a value.",
            )
