"""`maestro-celery purge`: take the waiting samples of steps back."""

from __future__ import annotations

import json
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STEP, STUDY
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.maestro.purge import Purge

__all__ = ["command"]


@click.command("purge")
@click.argument("study", type=STUDY)
@click.option(
    "--step",
    "steps",
    metavar="NAME",
    type=STEP,
    multiple=True,
    help="Step or step record; may be repeated. [default: all]",
)
@vars_option
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the number of purged samples by step record as JSON.")
def command(study: Path, steps: tuple[str, ...], variables: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Take the waiting samples of steps back: they, and what depends on them, do not run until `resume`.

    STUDY is the directory of a study, or the specification of a running study. Running samples run to their end, and
    other steps go on. `maestro-celery cancel --step` also ends the running samples.
    """
    purge = Purge(study_of(study, variables), steps)
    if purge.waiting and not force:
        click.echo(purge.question, err=as_json)
        click.confirm("Purge them?", abort=True, err=as_json)
    if purge.waiting:
        purge.apply()
    if as_json:
        click.echo(json.dumps(purge.to_json(), indent=1))
    elif purge.waiting:
        click.echo(f"Purged within seconds: {purge.question}" if force else "The conductor purges them within seconds.")
    else:
        click.echo("No samples wait; nothing is purged.")
