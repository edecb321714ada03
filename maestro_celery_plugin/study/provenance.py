"""Provenance: three versions of the specification in ``merlin_info``, with the names and the meaning of Merlin.

<name>.orig.yaml      the user's file
<name>.partial.yaml   the specification of this launch: its variables and labels have their final values; it can be
                      launched again
<name>.expanded.yaml  the record of this launch: also the tokens that are known at the launch have their values
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from maestro_celery_plugin.config.tokens import SPECIFICATION_TOKENS
from maestro_celery_plugin.files import write_atomically

__all__ = ["SpecificationTexts", "specification_files", "write_specifications"]

_KINDS = ("orig", "partial", "expanded")


@dataclasses.dataclass(frozen=True)
class SpecificationTexts:
    """The text of the versions that the launch makes.

    Attributes:
        partial: With the final values of variables.
        expanded: With the values of all tokens that are known at the launch.
    """

    partial: str
    expanded: str


def specification_files(info: Path, specification: Path | None) -> dict[str, str]:
    """Return the path of each version by the name of its token; no path for a specification without a file.

    Args:
        info: The directory ``merlin_info``.
        specification: The user's file. A launch of such a version does not add to its name.
    """
    if specification is None:
        return {}
    name = re.sub(rf"(\.({'|'.join(_KINDS)}))+$", "", specification.stem)
    return {t: str(info / f"{name}.{kind}.yaml") for t, kind in zip(SPECIFICATION_TOKENS, _KINDS, strict=True)}


def write_specifications(files: Mapping[str, str], user_file: Path | None, texts: SpecificationTexts) -> None:
    """Write the versions.

    Args:
        files: The result of `specification_files`.
        user_file: The user's file; None if there is none, and no version.
        texts: The versions that the launch makes.

    Raises:
        OSError: a file cannot be read or written.
    """
    if user_file is not None and files:
        original, partial, expanded = map(Path, files.values())
        shutil.copyfile(user_file, original)
        write_atomically(partial, texts.partial)
        write_atomically(expanded, texts.expanded)
