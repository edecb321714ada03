"""`maestro-celery explain`: why step records do not run or have ended."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STUDY
from maestro_celery_plugin.report.exit_codes import code_of
from maestro_celery_plugin.report.explain import Explanation

__all__ = ["command"]


@click.command("explain")
@click.argument("study", type=STUDY)
def command(study: Path) -> None:
    """Explain why step records of the study in the directory STUDY do not run, or why they have ended."""
    explanation = Explanation(study)
    explanations = list(explanation.all())
    if explanation.launched_with:
        click.echo(f"Launched with {explanation.launched_with}")
    for title, sentences in explanations:
        click.echo(title)
        for sentence in sentences:
            click.echo("\n".join(f"    {line}" for line in sentence.splitlines()))
    if not explanations:
        click.echo("All step records have finished.")
    sys.exit(code_of(explanation.status))
