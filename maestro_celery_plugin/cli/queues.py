"""`maestro-celery queues`: what waits in the task queues of a study."""

from __future__ import annotations

import json
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STUDY
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.errors import StudyError, nearest
from maestro_celery_plugin.report.task_queues import print_queues, task_queues
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["command"]


@click.command("queues")
@click.argument("study", type=STUDY)
@click.option("--queue", "names", metavar="NAME", multiple=True, help="Task queue; may be repeated. [default: all]")
@vars_option
@click.option("--json", "as_json", is_flag=True, help="Print the task queues as JSON.")
def command(study: Path, names: tuple[str, ...], variables: tuple[str, ...], as_json: bool) -> None:
    """Show the task queues of a study: waiting and running samples, messages, and the workers that serve them.

    STUDY is the directory of a study, or the specification of a running study. The numbers are those of the ledger,
    except AT BROKER, which may include messages that have become invalid; '?' if the broker does not answer.
    """
    queues = task_queues(StudyPlan.read(study_of(study, variables)))
    for name in names:
        if name not in (known := [queue.name for queue in queues]):
            raise StudyError(f"--queue: the study has no task queue '{name}'; {nearest(name, known)}")
    queues = [queue for queue in queues if not names or queue.name in names]
    if as_json:
        click.echo(json.dumps([queue.to_json() for queue in queues], indent=1))
    else:
        print_queues(queues)
