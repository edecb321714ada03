"""`maestro-celery cancel`: cancel single steps of a study."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STEP, STUDY
from maestro_celery_plugin.maestro.cancel_steps import cancel_steps

__all__ = ["command"]


@click.command("cancel")
@click.argument("study", type=STUDY)
@click.option(
    "--step",
    "steps",
    metavar="NAME",
    type=STEP,
    multiple=True,
    required=True,
    help="Step or step record; may be repeated.",
)
def command(study: Path, steps: tuple[str, ...]) -> None:
    """Cancel steps of the study in the directory STUDY, and what depends on them; the other steps go on.

    `maestro cancel STUDY` cancels the whole study.
    """
    report = cancel_steps(study.absolute(), steps)
    for sentence in report.sentences:
        click.echo(sentence)
    sys.exit(0 if report.is_complete else 1)
