"""Directives: the options of `batch.args` in a batch script.

Maestro's adapters for Slurm and LSF write a fixed list of directives. `batch.args` has any other option of `sbatch` or
`bsub`: as a block (``constraint: haswell``), or as text (``--constraint=haswell``).
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Directives"]


@dataclasses.dataclass(frozen=True)
class Directives:
    """How a batch system reads options from the comments of a batch script.

    Attributes:
        prefix: The beginning of such a comment: ``#SBATCH``.
        instead: Options that a specification sets with another key, or that have no use here, and what to do instead.
        has_long_options: Whether names of several letters begin with two dashes, and ``=`` precedes their value.
    """

    prefix: str
    instead: Mapping[str, str] = dataclasses.field(default_factory=dict)
    has_long_options: bool = True

    def lines(self, args: Mapping[str, Any] | str) -> list[str]:
        """Return the directives for options.

        Worked example for Slurm: ``{constraint: a b, C: x, exclusive: true, mail-type: [END, FAIL]}`` makes
        ``--constraint='a b'``, ``-C x``, ``--exclusive``, and ``--mail-type`` twice.

        Args:
            args: Options as a block, where ``true`` is an option without a value, ``false`` omits the option, and a
                list repeats it; or as text, of which each line is one directive.
        """
        if isinstance(args, str):
            options = [line.strip() for line in args.splitlines() if line.strip()]
        else:
            options = [text for name, value in args.items() for text in self._options(str(name), value)]
        return [f"{self.prefix} {option}" for option in options]

    def _options(self, name: str, value: Any) -> Iterator[str]:
        for item in value if isinstance(value, list) else [value]:
            option = self._option(name)
            if item is None or item is True:
                yield option
            elif item is not False:
                separator = "=" if option.startswith("--") else " "
                yield f"{option}{separator}{shlex.quote(str(item))}"

    def _option(self, name: str) -> str:
        if name.startswith("-"):
            return name
        return f"--{name}" if self.has_long_options and len(name) > 1 else f"-{name}"

    def problem(self, args: Mapping[str, Any] | str) -> str | None:
        """Return what is wrong with options, and what to do; None if nothing is."""
        values = args.values() if isinstance(args, Mapping) else ()
        for value in (item for entry in values for item in (entry if isinstance(entry, list) else [entry])):
            if isinstance(value, Mapping | list):
                return "found a block or a list as the value of an option; use text, a number, true or false"
            if "\n" in str(value):
                return f"found the value '{value}' with a line break; write it on one line"
        try:
            words = [word for line in self.lines(args) for word in shlex.split(line.removeprefix(self.prefix))]
        except ValueError as cause:
            return f"found '{args}': {cause}; close the quotes"
        if isinstance(args, str) and words and not words[0].startswith("-"):
            return f"found '{args}'; an option begins with '-', such as '--constraint=haswell'"
        for word in words:
            for option, remedy in self.instead.items():
                if self._is_option(word, option):
                    return f"found '{option}'; {remedy}"
        return None

    def _is_option(self, word: str, option: str) -> bool:
        """Tell whether a word is an option, alone or with its value: ``-t``, ``-t5``, ``--time``, ``--time=5``."""
        if option.startswith("--"):
            return word.partition("=")[0] == option
        return word == option or (self.has_long_options and word.startswith(option) and not word.startswith("--"))

    def insert(self, script: str, args: Mapping[str, Any] | str | None) -> str:
        """Return a batch script with the directives of options after its last directive, or after its first line."""
        added = self.lines(args) if args else []
        if not added:
            return script
        lines = script.split("\n")
        last = max((at for at, line in enumerate(lines) if line.startswith(f"{self.prefix} ")), default=0)
        return "\n".join((*lines[: last + 1], *added, *lines[last + 1 :]))
