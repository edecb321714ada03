"""`maestro-celery monitor`: wait for the end of studies."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STUDY
from maestro_celery_plugin.cli.stalled_option import stalled_option
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.report.monitor import MonitoredStudy, monitor

__all__ = ["command"]

_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command("monitor")
@click.argument("studies", metavar="STUDY...", nargs=-1, required=True, type=STUDY)
@click.option("--sleep", default=10.0, type=_SECONDS, help="Seconds between two looks. [default: 10]")
@click.option("--timeout", type=_SECONDS, help="Seconds to wait. [default: no limit]")
@stalled_option
@vars_option
@click.option("--json", "as_json", is_flag=True, help="Print the status of all studies as JSON at the end.")
def command(
    studies: tuple[Path, ...],
    sleep: float,
    timeout: float | None,
    stalled_after: float,
    variables: tuple[str, ...],
    as_json: bool,
) -> None:
    """Wait until studies have ended, for example in a batch script; print a line when something has changed.

    STUDY is the directory of a study, or a specification, which stands for its newest study. The exit code tells how
    the studies are: the highest code of several ("Exit codes" in the documentation).
    """
    monitored = [MonitoredStudy(study_of(study, variables, may_have_ended=True), stalled_after) for study in studies]
    timeout_s = math.inf if timeout is None else timeout

    def show(line: str) -> None:
        click.echo(line, err=as_json)

    code = monitor(monitored, sleep_s=sleep, timeout_s=timeout_s, show=show)
    if as_json:
        click.echo(json.dumps([study.to_json() for study in monitored], indent=1))
    sys.exit(code)
