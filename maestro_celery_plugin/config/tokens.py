"""Tokens: ``$(NAME)`` in a text, replaced literally.

A value is inserted once and not scanned again: a backslash, a ``$(...)`` or a quote in a value stays as it is.
(Merlin passes values to `re.sub` as replacement patterns, study/step.py:436, where a backslash has a meaning.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from maestro_celery_plugin.states import ExitCode

__all__ = [
    "RESERVED",
    "SAMPLE_TOKENS",
    "SPECIFICATION_TOKENS",
    "NameMatcher",
    "Template",
    "names_in",
    "substitute",
]

_TOKEN = re.compile(r"\$\(([^\s()]+)\)")

# The files with the user's specification, that of the launch, and that with the values of tokens (`provenance.py`).
SPECIFICATION_TOKENS = ("MERLIN_SPEC_ORIGINAL_TEMPLATE", "MERLIN_SPEC_EXECUTED_RUN", "MERLIN_SPEC_ARCHIVED_COPY")
# Names with a fixed meaning (Merlin: spec/expansion.py:27).
RESERVED = (
    *("SPECROOT", "WORKSPACE", "LAUNCHER", "VLAUNCHER"),
    *("MERLIN_WORKSPACE", "MERLIN_INFO", "MERLIN_TIMESTAMP", "MERLIN_GLOB_PATH", "MERLIN_PATHS_ALL"),
    *("MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH", "MERLIN_SAMPLE_VECTOR", "MERLIN_SAMPLE_NAMES"),
    *SPECIFICATION_TOKENS,
    *(f"MERLIN_{code.name}" for code in ExitCode),
)
# Tokens with another value for each sample. `MERLIN_SAMPLE_NAMES` is the same for all samples.
SAMPLE_TOKENS = ("MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH", "MERLIN_SAMPLE_VECTOR")


def names_in(text: str) -> set[str]:
    """Return the names of all tokens in `text`."""
    return set(_TOKEN.findall(text))


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Replace the tokens that are in `values`; leave all other tokens as they are."""
    return _TOKEN.sub(lambda match: values.get(match[1], match[0]), text)


class NameMatcher:
    """Matching of tokens with names: exact; only the case of the plugin's own names does not matter, as in Merlin.

    The case of a column label matters, because ``$(nproc)`` is a command of the shell, and no column ``NPROC``.

    Args:
        names: The names.
        ignore_case: Match all names in any case, as release 0.1 did; a token that matches several names has no match.
    """

    def __init__(self, names: Sequence[str], *, ignore_case: bool = False) -> None:
        self._exact = frozenset(names)
        folded: dict[str, str | None] = {}
        for name in self._exact:
            if ignore_case or name in RESERVED:
                folded[name.casefold()] = None if name.casefold() in folded else name
        self._folded = folded

    def match(self, token: str) -> str | None:
        """Return the name that a token matches; None when there is no match."""
        return token if token in self._exact else self._folded.get(token.casefold())


class Template:
    """A text with tokens, parsed once and filled for each sample.

    Args:
        text: The text.
        names: The tokens to fill; other tokens are literal text.
        ignore_case: As in `NameMatcher`.
    """

    def __init__(self, text: str, names: Sequence[str], *, ignore_case: bool = False) -> None:
        pieces = _TOKEN.split(text)
        self._parts: list[str] = [pieces[0]]
        self._placeholders: list[tuple[int, str]] = []
        matcher = NameMatcher(names, ignore_case=ignore_case)
        for token, literal in zip(pieces[1::2], pieces[2::2], strict=True):
            name = matcher.match(token)
            if name is None:
                self._parts.append(f"$({token})")
            else:
                self._placeholders.append((len(self._parts), name))
                self._parts.append("")
            self._parts.append(literal)

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with each token replaced by its value."""
        parts = self._parts.copy()
        for position, name in self._placeholders:
            parts[position] = values[name]
        return "".join(parts)
