"""The cache of the status: what a command has read of a large ledger, so that the next one reads what is new.

A ledger has a few hundred bytes per sample, and an entry never changes. The file is a convenience: without it, or if
anything in it is not as expected, the whole ledger is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maestro_celery_plugin.files import open_regular, replaced
from maestro_celery_plugin.ledger.attempt_rules import STATE
from maestro_celery_plugin.ledger.file_state import Mark
from maestro_celery_plugin.ledger.sample_states import COUNTED
from maestro_celery_plugin.report.durations import END
from maestro_celery_plugin.report.running_attempts import ATTEMPT

__all__ = ["UNUSABLE", "StatusCache", "Stored"]

Array = np.ndarray[Any, Any]
Stored = dict[str, Array]

# The format of the file and of the arrays; a file of another release is not used.
_FORMAT = 1
_TYPES = {
    "rows": STATE,
    "facts": np.dtype("<i8"),
    "counted": COUNTED,
    "ends": np.dtype("<f8"),
    "starts": np.dtype("<f8"),
    "writers": np.dtype("<u4"),
    "are_counted": np.dtype("?"),
    "notable": END,
    "running": ATTEMPT,
    "interruptions": np.dtype("<f8"),
}
# The numbers of states have 8, 16 or 32 bits.
_NUMBERS = "numbers"
_WIDTHS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}
# Nobody needs as many seconds to write the file.
_WRITE_LIMIT_S = 3600.0
# What a file with any content may raise.
UNUSABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,  # an encrypted part; also RecursionError
    zlib.error,
    zipfile.BadZipFile,
)


class StatusCache:
    """The file with what was read of the ledger of a study.

    Args:
        path: The file.
        study: Number of the study.
    """

    def __init__(self, path: Path, study: int) -> None:
        self._path, self._study = path, study

    def read(self) -> tuple[dict[str, Any], dict[str, Mark], dict[int, Stored]] | None:
        """Return the facts, the marks in the ledger, and the arrays by step record; None without a usable file."""
        try:
            with open_regular(self._path) as source, zipfile.ZipFile(source) as file:
                head = json.loads(file.read("head.json"))
                if head["format"] != _FORMAT or head["study"] != self._study:
                    return None
                columns = {name: file.read(name) for name in (_NUMBERS, *_TYPES)}
            marks = {
                str(writer): Mark(int(offset), bool(is_old), bytes.fromhex(entry))
                for writer, offset, is_old, entry in head["marks"]
            }
            return head["facts"], marks, dict(zip(head["records"], _divided(columns, head), strict=True))
        except UNUSABLE:
            return None

    def write(self, facts: Mapping[str, Any], marks: Mapping[str, Mark], records: Mapping[int, Stored]) -> None:
        """Replace the file; do nothing if this user may not."""
        try:
            if self._path.parent.stat().st_uid != os.geteuid():
                return
            head = {
                "format": _FORMAT,
                "study": self._study,
                "facts": facts,
                "marks": [(writer, mark.offset, mark.is_old, mark.entry.hex()) for writer, mark in marks.items()],
                "records": list(records),
                "widths": [stored[_NUMBERS].dtype.itemsize for stored in records.values()],
                "lengths": {name: [stored[name].nbytes for stored in records.values()] for name in (_NUMBERS, *_TYPES)},
            }
            with replaced(self._path, durable=False) as target, _archive(target) as file:
                self._remove_leftovers(os.fstat(target.fileno()).st_mtime)
                file.writestr("head.json", json.dumps(head))
                for name in (_NUMBERS, *_TYPES):
                    with file.open(name, "w", force_zip64=True) as part:
                        for stored in records.values():
                            part.write(np.ascontiguousarray(stored[name]).view(np.uint8).data)
        except OSError:
            return

    def _remove_leftovers(self, now: float) -> None:
        """Remove what processes have left that were killed while they wrote; `now` is the time of the file server."""
        for path in self._path.parent.glob(f".{self._path.name}.*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - _WRITE_LIMIT_S:
                    path.unlink()


def _archive(target: Any) -> zipfile.ZipFile:
    """Return an archive; most samples are like their neighbours, so that the fastest compression is enough."""
    return zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1)


def _divided(columns: Mapping[str, bytes], head: Mapping[str, Any]) -> Iterator[Stored]:
    """Yield the arrays of each step record."""
    places = dict.fromkeys(columns, 0)
    for record, width in enumerate(head["widths"]):
        stored: Stored = {}
        for name, column in columns.items():
            size = head["lengths"][name][record]
            type_ = _WIDTHS[width] if name == _NUMBERS else _TYPES[name]
            stored[name] = np.frombuffer(column, type_, size // type_.itemsize, places[name])
            places[name] += size
        yield stored
