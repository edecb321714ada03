"""The sample table of a study: a copy in the study's own directory, which nobody else changes or deletes."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.files import replaced
from maestro_celery_plugin.samples.npy_file import read_header, write_npy
from maestro_celery_plugin.samples.table import FileIdentity, check_is_file

__all__ = ["copy_table", "has_objects", "own_table", "plain_table"]

_PART = 1 << 30  # bytes per system call


def own_table(path: Path, directory: Path) -> Path:
    """Return the table of a study: the file itself if it is the study's own, else a copy of it.

    Args:
        path: The sample file.
        directory: The directory of the study's files.

    Raises:
        SampleError: there is no file, or another process changes it meanwhile.
        OSError: a file cannot be read or written.
    """
    check_is_file(path)
    is_inside = path.resolve().is_relative_to(directory.resolve())
    if is_inside and path.stat().st_nlink == 1:  # another hard link has the same content, also after a change of it
        return path
    target = _target(path, directory)
    copy_table(path, target)
    return target


def copy_table(path: Path, target: Path) -> None:
    """Copy a sample file, in one step.

    Args:
        path: The sample file.
        target: The copy, which replaces another file.

    Raises:
        SampleError: there is no file, or another process changes it meanwhile.
        OSError: a file cannot be read or written.
    """
    check_is_file(path)
    before = FileIdentity.of(path)
    mode = stat.S_IMODE(path.stat().st_mode) & 0o666 | stat.S_IRUSR | stat.S_IWUSR
    with path.open("rb") as source, replaced(target, mode) as file:
        _copy(source, file)
        if FileIdentity.of(path) != before or file.tell() != before.size:
            raise SampleError(f"merlin.samples.file: '{path}' is being written; launch when it is complete.")


def _target(path: Path, directory: Path) -> Path:
    """Return the path of the study's own table; it has a directory of its own, because files have names of any kind."""
    target = directory / "samples" / path.name
    target.parent.mkdir(exist_ok=True)
    return target


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    """Copy a file; file systems that can do it share the blocks, or copy them on their server (copy_file_range(2))."""
    with contextlib.suppress(OSError, AttributeError):  # different file systems, an old kernel, or not Linux
        while os.copy_file_range(source.fileno(), target.fileno(), _PART):
            pass
    # What the file system has not copied; the positions of both files are those of the descriptors.
    position = os.lseek(source.fileno(), 0, os.SEEK_CUR)
    source.seek(position)
    target.seek(position)
    shutil.copyfileobj(source, target, 1 << 22)


def plain_table(path: Path, directory: Path) -> Path | None:
    """Return a copy of an array of Python objects as an array of text; None if the file is no such array.

    This unpickles the file, which can run any code: use it only for a file that a command of the user has just written.

    Raises:
        SampleError: the file cannot be unpickled, or an element is neither a number nor text.
        OSError: a file cannot be read or written.
    """
    if path.suffix != ".npy" or not path.is_file() or not has_objects(path):
        return None
    try:
        array = np.load(path, allow_pickle=True)
    except OSError:
        raise
    except Exception as cause:  # unpickling can raise any error
        text = " ".join(str(cause).split()) or type(cause).__name__
        raise SampleError(f"merlin.samples.file: the Python objects in '{path}' cannot be read: {text}") from cause
    texts = np.array([_text(value, path) for value in array.ravel()], dtype=str).reshape(array.shape)
    target = _target(path, directory)
    write_npy(target, texts)
    return target


def has_objects(path: Path) -> bool:
    """Tell whether a file has an array of Python objects."""
    try:
        with path.open("rb") as file:
            return read_header(file)[2].hasobject
    except (ValueError, EOFError):
        return False  # the reader reports it


def _text(value: Any, path: Path) -> str:
    """Return the text of one element of an array of Python objects."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    elif isinstance(value, str | int | float | complex | np.generic) and not isinstance(value, np.void):
        return str(value)
    raise SampleError(
        f"merlin.samples.file: '{path}' contains Python objects of the type '{type(value).__name__}'; save an array of "
        "numbers or text."
    )
