"""`maestro-celery stop-workers`: end the workers of a study, which then waits."""

from __future__ import annotations

import json
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import GROUP, STUDY
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.maestro.stop_workers import StopRequest, stop_workers

__all__ = ["command"]


@click.command("stop-workers")
@click.argument("study", type=STUDY)
@click.option("--group", "groups", type=GROUP, multiple=True, help="Worker group; may be repeated. [default: all]")
@click.option("--now", is_flag=True, help="End the running samples as well; they run again later.")
@vars_option
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what was requested as JSON.")
def command(
    study: Path, groups: tuple[str, ...], now: bool, variables: tuple[str, ...], force: bool, as_json: bool
) -> None:
    """End the workers of a study after their running samples, and the allocations of these workers.

    STUDY is the directory of a study, or the specification of a running study. The conductor starts no other workers:
    the study waits until `maestro-celery resume` lets it start workers, or `maestro-celery workers` starts some.
    """
    request = StopRequest(study_of(study, variables), groups, now=now)
    if not force and not request.is_empty:
        click.echo(request.question, err=as_json)
        click.confirm("Stop them?", abort=True, err=as_json)
    sentences = stop_workers(request)
    if as_json:
        click.echo(json.dumps(request.to_json(), indent=1))
        return
    for sentence in sentences:
        click.echo(sentence)
