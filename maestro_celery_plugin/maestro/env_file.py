"""The file of `maestro run --env-file`: environment variables of a study, in the form of dotenv files."""

from __future__ import annotations

import io
import re
from pathlib import Path

from maestro_celery_plugin.errors import StudyError

__all__ = ["read_env_file"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Variables of the plugin; samples would inherit a password in them.
_OWN_PREFIX = "MAESTRO_CELERY_"


def read_env_file(file: str) -> dict[str, str]:
    """Return the variables in a file; of several values for one name, the last counts.

    A ``$`` in a value is text. Messages name the line, but show none of it, because it may have a secret.

    Raises:
        StudyError: the file cannot be read, or a line is not ``NAME=VALUE``.
    """
    from dotenv.parser import parse_stream  # only with this option

    try:
        text = Path(file).read_text()
    except (OSError, ValueError) as cause:
        problem = getattr(cause, "strerror", None) or str(cause)
        raise StudyError(
            f"--env-file: '{file}' cannot be read ({problem}); give a file with NAME=VALUE lines."
        ) from cause
    found = {}
    for binding in parse_stream(io.StringIO(text)):
        words = binding.original.string
        line = binding.original.line + words[: len(words) - len(words.lstrip())].count("\n")
        if binding.key is None and not binding.error:
            continue  # a comment
        if binding.key is None or binding.value is None or "\0" in binding.value or not _NAME.fullmatch(binding.key):
            raise StudyError(
                f"--env-file: '{file}', line {line}: this is not NAME=VALUE, where a value with blanks or quotes has "
                "quotes around it, and a comment begins with #; correct the line."
            )
        if binding.key.startswith(_OWN_PREFIX):
            raise StudyError(
                f"--env-file: '{file}', line {line}: '{binding.key}' is a variable of the plugin; use the options of "
                "`maestro run` instead, and remove the line."
            )
        found[binding.key] = binding.value
    return found
