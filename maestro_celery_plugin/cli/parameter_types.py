"""The types of parameters whose values a shell can complete: studies, steps and worker groups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["GROUP", "STEP", "STUDY", "example_names", "files"]

# The parameters of commands that are a study.
_STUDIES = ("study", "studies", "directory", "places")
# With more step records than this, only the names of the steps are shown.
_RECORDS = 50


class _Study(click.Path):
    """The directory of a study, or its specification."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        """Return the studies that begin so, the newest one first; without any, the shell completes files."""
        with contextlib.suppress(OSError):
            if found := list(_studies(incomplete)):
                return [CompletionItem(path) for path in found]
        return [CompletionItem(incomplete, type="file")]


class _Name(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """A name in the study that precedes it on the command line, or in the study of the current directory.

    Args:
        names: Returns the names in the directory of a study, or in its specification.
    """

    name = "text"

    def __init__(self, names: Callable[[Path], Iterable[str]]) -> None:
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        """Return the names that begin so; none of a study that cannot be read."""
        names = list[str]()
        with contextlib.suppress(Exception):  # the terminal of the user is no place for a traceback
            names = [name for name in self._names(_study_in(ctx)) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in names]


def _studies(incomplete: str) -> Iterator[str]:
    """Return the paths of studies that begin with a text, the newest one first."""
    head, slash, prefix = incomplete.rpartition("/")
    found = []
    with os.scandir(os.path.expanduser(head + slash) or ".") as entries:  # noqa: PTH111 (a part of a path)
        for entry in entries:
            if entry.name.startswith(prefix) and (prefix or not entry.name.startswith(".")):
                with contextlib.suppress(OSError):
                    if os.path.isdir(f"{entry.path}/merlin_info"):  # noqa: PTH112 (faster in a large directory)
                        found.append((os.stat(f"{entry.path}/batch.info").st_mtime, entry.name))  # noqa: PTH116
    return (f"{head}{slash}{name}" for _, name in sorted(found, reverse=True))


def _study_in(ctx: click.Context) -> Path:
    """Return the study on the command line; the current directory without one.

    After an option without its value, which is about to be typed, click has not assigned the arguments.
    """
    values = [ctx.params.get(name) for name in _STUDIES]
    words = [word for value in values if value for word in (value if isinstance(value, tuple) else (value,))]
    paths = (Path(word).expanduser() for word in (*words, *ctx.args))
    return next((path for path in paths if path.exists()), Path())


def _steps(study: Path) -> Iterator[str]:
    """Yield the names of steps, then those of step records."""
    if study.is_file():
        yield from (str(step["name"]) for step in _content(study)["study"])
        return
    from maestro_celery_plugin.study.status_csv import read_rows  # here, because a completion imports few modules

    rows = read_rows(study)
    steps = dict.fromkeys(row.step for row in rows)
    yield from steps
    if len(rows) <= _RECORDS:
        yield from (row.name for row in rows if row.name not in steps)


def _groups(study: Path) -> Iterator[str]:
    """Yield the names of worker groups."""
    if study.is_file():
        yield from map(str, _content(study)["merlin"]["resources"]["workers"])
        return
    yield from sorted(path.stem for path in (study / "merlin_info" / "session" / "groups").glob("*.json"))


def _content(specification: Path) -> Any:
    import yaml  # here, because a completion imports few modules

    return yaml.safe_load(specification.read_text())


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Let the shell complete a file, for a parameter that may also be something else."""
    return [CompletionItem(incomplete, type="file")]


def example_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of examples that begin so."""
    names = (path.stem for path in sorted((Path(__file__).parents[1] / "examples").glob("*.yaml")))
    return [name for name in names if name.startswith(incomplete)]


STUDY, STEP, GROUP = _Study(), _Name(_steps), _Name(_groups)
