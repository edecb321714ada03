"""`maestro-celery wait`: wait for the end of studies in a script."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from maestro_celery_plugin.cli.parameter_types import STUDY
from maestro_celery_plugin.cli.stalled_option import stalled_option
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.report.exit_codes import WaitCode
from maestro_celery_plugin.report.monitor import MonitoredStudy, monitor

__all__ = ["command"]


@click.command("wait")
@click.argument("studies", metavar="STUDY...", nargs=-1, required=True, type=STUDY)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait. [default: no limit]")
@stalled_option
@vars_option
@click.option("--json", "as_json", is_flag=True, help="Print the status of all studies as JSON at the end.")
def command(
    studies: tuple[Path, ...], timeout: float | None, stalled_after: float, variables: tuple[str, ...], as_json: bool
) -> None:
    """Wait until studies have ended; the exit code tells a script how they are: the highest code of several.

    STUDY is the directory of a study, or a specification, which stands for its newest study. Standard error has a line
    for each change of state if it is a terminal; otherwise only why a study cannot go on, or that the time is over.
    """
    monitored = [MonitoredStudy(study_of(study, variables, may_have_ended=True), stalled_after) for study in studies]
    monitor(
        monitored,
        timeout_s=math.inf if timeout is None else timeout,
        show=_say if sys.stderr.isatty() else lambda line: None,
        milestones=True,
    )
    if not sys.stderr.isatty():
        for study in monitored:
            if study.advice:
                _say(f"{study.status.path}: {study.advice}")
    for study in monitored:
        if study.wait_code is WaitCode.TIMED_OUT:
            _say(f"{study.status.path}: it still runs after {timeout:g} s.")
    if as_json:
        click.echo(json.dumps([_to_json(study) for study in monitored], indent=1))
    sys.exit(max(study.wait_code for study in monitored))


def _to_json(study: MonitoredStudy) -> dict[str, Any]:
    code = study.wait_code
    return study.status.to_json() | {"code": int(code), "outcome": code.name.lower()}


def _say(line: str) -> None:
    click.echo(line, err=True)
