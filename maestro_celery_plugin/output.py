"""The standard output of this process."""

from __future__ import annotations

import io
import sys

__all__ = ["replace_unknown_characters"]


def replace_unknown_characters() -> None:
    """Let a question mark stand for each character that the output does not have, such as ``…`` with ``LC_ALL=C``.

    Names and values of a study may have any characters; an output in UTF-8 has all of them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.replace("-", "").lower() != "utf8":
            stream.reconfigure(errors="replace")
