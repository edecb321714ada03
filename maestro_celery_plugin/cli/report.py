"""`maestro-celery report`: a study as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STUDY
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import write_atomically
from maestro_celery_plugin.report.page import page
from maestro_celery_plugin.report.study_summary import summarize

__all__ = ["command"]


@click.command("report")
@click.argument("study", type=STUDY)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file. [default: report.html in STUDY]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers of the report as JSON; needs no extra.")
def command(study: Path, output: Path | None, as_json: bool) -> None:
    """Write a report of the study in the directory STUDY: one HTML file, which needs no network.

    It shows what ran and when, where the slot time went, which values fail, durations, attempts, and machines. The
    study may still run. The command needs the extra `report` (`pip install 'maestro-celery-plugin[report]'`).
    """
    summary = summarize(study)
    if as_json:
        click.echo(json.dumps(summary.to_json(), indent=1))
        return
    target = output or study / "report.html"  # the path in the summary may be redacted
    if not target.absolute().parent.is_dir():
        raise StudyError(f"--output {target}: there is no directory '{target.absolute().parent}'; create it first.")
    write_atomically(target, page(summary))
    click.echo(f"'{target}' has the report of '{summary.study}'.")
