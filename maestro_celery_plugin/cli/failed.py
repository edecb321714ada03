"""`maestro-celery failed`: what failed samples have in common."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from maestro_celery_plugin.cli.parameter_types import STEP, STUDY
from maestro_celery_plugin.report.failure_groups import step_failures
from maestro_celery_plugin.report.failures_view import print_failures
from maestro_celery_plugin.report.study_samples import StudySamples

__all__ = ["command"]


@click.command("failed")
@click.argument("study", type=STUDY)
@click.option("--step", "steps", metavar="NAME", type=STEP, multiple=True, help="Step or step record; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the groups as JSON.")
def command(study: Path, steps: tuple[str, ...], as_json: bool) -> None:
    """Group the failed samples of the study in the directory STUDY, and show what distinguishes them.

    A group has the same exit code and the same last line of stderr, without its numbers. For each group, the command
    names the sample values, parameters and machines that most of its samples have, and few of those that finished.
    """
    found = step_failures(StudySamples(study), steps)
    if as_json:
        click.echo(json.dumps([step.to_json() for step in found], indent=1))
    else:
        print_failures(found, Console(highlight=False))
