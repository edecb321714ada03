"""Tokens: ``$(NAME)`` in a text, replaced literally.

A value is never looked at again after it was put in: a backslash, a ``$(...)`` or a quote in a value
stays itself. (Merlin hands values to `re.sub` as replacement patterns, study/step.py:436, where a
backslash changes meaning.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.states import ExitCode

__all__ = [
    "RESERVED",
    "SAMPLE_TOKENS",
    "Spelling",
    "Template",
    "exit_code_values",
    "launcher_removed",
    "names_in",
    "sample_values",
    "study_values",
    "substitute",
]

_TOKEN = re.compile(r"\$\(([^\s()]+)\)")
# Maestro's form with resources, $(LAUNCHER)[2n,4p] (abstracts/interfaces/schedulerscriptadapter.py:55).
_LAUNCHER = re.compile(r"\$\(V?LAUNCHER\)(\[[^\]]*\])?[ \t]*")

# Names that have a meaning of their own (Merlin: spec/expansion.py:27).
RESERVED = (
    *("SPECROOT", "WORKSPACE", "LAUNCHER", "VLAUNCHER"),
    *("MERLIN_WORKSPACE", "MERLIN_INFO", "MERLIN_TIMESTAMP", "MERLIN_GLOB_PATH", "MERLIN_PATHS_ALL"),
    *("MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH", "MERLIN_SAMPLE_VECTOR", "MERLIN_SAMPLE_NAMES"),
    *(f"MERLIN_{code.name}" for code in ExitCode),
)
SAMPLE_TOKENS = ("MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH", "MERLIN_SAMPLE_VECTOR", "MERLIN_SAMPLE_NAMES")


def names_in(text: str) -> set[str]:
    """Return the names of all tokens in `text`."""
    return set(_TOKEN.findall(text))


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Replace the tokens that `values` knows; leave all others as they are."""
    return _TOKEN.sub(lambda match: values.get(match[1], match[0]), text)


def launcher_removed(text: str) -> str:
    """Remove ``$(LAUNCHER)`` and ``$(VLAUNCHER)``, for workers without a batch system to launch with."""
    return _LAUNCHER.sub("", text)


class Spelling:
    """Names that may be written in upper or lower case where that leaves one meaning, as in Merlin.

    A name that has its own spelling among `names` means itself.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = frozenset(names)
        self._folded: dict[str, str | None] = {}
        for name in self._exact:
            self._folded[name.casefold()] = None if name.casefold() in self._folded else name

    def of(self, token: str) -> str | None:
        """Return the name that a token means, or None."""
        return token if token in self._exact else self._folded.get(token.casefold())


class Template:
    """A text with tokens, taken apart once and filled in for each sample.

    Args:
        text: The text.
        names: The tokens to be filled in; others are literal text.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        pieces = _TOKEN.split(text)
        self._parts: list[str] = [pieces[0]]
        self._holes: list[tuple[int, str]] = []
        spelling = Spelling(names)
        for token, literal in zip(pieces[1::2], pieces[2::2], strict=True):
            name = spelling.of(token)
            if name is None:
                self._parts.append(f"$({token})")
            else:
                self._holes.append((len(self._parts), name))
                self._parts.append("")
            self._parts.append(literal)

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with each token replaced by its value."""
        parts = self._parts.copy()
        for position, name in self._holes:
            parts[position] = values[name]
        return "".join(parts)


def exit_code_values() -> dict[str, str]:
    """Return ``MERLIN_SUCCESS`` and the other exit codes by token name."""
    return {f"MERLIN_{code.name}": str(code.value) for code in ExitCode}


def study_values(root: str, timestamp: str, paths: SamplePaths, text: str) -> dict[str, str]:
    """Return the values of the tokens that are the same for every sample of a study.

    Args:
        root: The study's workspace, ``$(OUTPUT_PATH)``.
        timestamp: When the study was launched, ``YYYYMMDD-HHMMSS``.
        paths: The directory hierarchy of the samples.
        text: The text they are for; ``MERLIN_PATHS_ALL`` is long and made only when it is used.
    """
    values = {
        "MERLIN_WORKSPACE": root,
        "MERLIN_INFO": f"{root}/merlin_info",
        "MERLIN_TIMESTAMP": timestamp,
        "MERLIN_GLOB_PATH": paths.glob,
        **exit_code_values(),
    }
    if "MERLIN_PATHS_ALL" in names_in(text):
        values["MERLIN_PATHS_ALL"] = " ".join(paths.all())
    return values


def sample_values(labels: Sequence[str], row: Sequence[str], index: int, path: str) -> dict[str, str]:
    """Return the values of the tokens of one sample."""
    values = dict(zip(labels, row, strict=True))
    values["MERLIN_SAMPLE_ID"] = str(index)
    values["MERLIN_SAMPLE_PATH"] = path
    values["MERLIN_SAMPLE_VECTOR"] = " ".join(row)
    values["MERLIN_SAMPLE_NAMES"] = " ".join(labels)
    return values
