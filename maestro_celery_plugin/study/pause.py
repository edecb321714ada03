"""The pause of a study: a sample has requested that all workers stop (exit code 105), and none starts by itself.

The conductor writes the file with the reason, for users and for itself; who removes the file ends the pause.
"""

from __future__ import annotations

from pathlib import Path

from maestro_celery_plugin.files import read_text, write_atomically

__all__ = ["begin_pause", "end_pause", "read_pause"]


def begin_pause(path: Path, reason: str) -> None:
    """Store that a study is paused.

    Args:
        path: The file (`StudyPlan.pause`).
        reason: Why, as a sentence.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, reason)


def end_pause(path: Path) -> None:
    """End the pause of a study, if it is paused.

    Raises:
        OSError: the file cannot be removed.
    """
    path.unlink(missing_ok=True)


def read_pause(path: Path) -> str:
    """Return why a study is paused; empty if it is not.

    Raises:
        OSError: the file cannot be read now.
    """
    try:
        return read_text(path).strip()
    except FileNotFoundError:
        return ""
