"""`maestro-celery example`: the example specifications, and a copy of one of them."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import yaml

from maestro_celery_plugin.cli.parameter_types import example_names
from maestro_celery_plugin.errors import StudyError, nearest

__all__ = ["command", "examples"]

# `setup.cfg` installs the directory `specs` of the project here.
EXAMPLES = Path(__file__).parents[1] / "examples"


@click.command("example")
@click.argument("name", required=False, shell_complete=example_names)
@click.option("--path", type=click.Path(path_type=Path), default=".", help="Directory for the copy. [default: .]")
def command(name: str | None, path: Path) -> None:
    """List the example specifications, or write the files of the example NAME into a new directory NAME."""
    if name in (None, "list"):  # `list` as in Merlin
        _show()
        return
    specification = write_example(str(name), path)
    click.echo(f"'{specification.parent}' has the files of the example. Launch it with")
    click.echo(f"    maestro run {shlex.quote(str(specification))}")


def examples() -> dict[str, Path]:
    """Return the specification of each example by its name."""
    return {path.stem: path for path in sorted(EXAMPLES.glob("*.yaml"))}


def write_example(name: str, path: Path) -> Path:
    """Write the files of an example into a new directory, and return its specification there.

    Args:
        name: Name of the example.
        path: Where the directory is created.

    Raises:
        StudyError: there is no such example, or the directory exists.
    """
    if name not in examples():
        raise StudyError(f"There is no example '{name}'; {nearest(name, examples())}")
    source, target = examples()[name], path / name
    try:
        target.mkdir(parents=True)
    except FileExistsError as cause:
        raise StudyError(f"'{target}' exists; use another directory with --path.") from cause
    for file in (source, *_files_of(source)):
        (target / file.name).write_bytes(file.read_bytes())
    return target / source.name


def _files_of(specification: Path) -> list[Path]:
    """Return the other files that a specification mentions."""
    text = specification.read_text()
    return [path for path in sorted(EXAMPLES.iterdir()) if path.suffix == ".py" and path.name in text]


def _show() -> None:
    width = max(map(len, examples()))
    for name, path in examples().items():
        click.echo(f"{name:<{width}}  {yaml.safe_load(path.read_text())['description']['description']}")
    click.echo("\nWrite one with `maestro-celery example NAME`.")
