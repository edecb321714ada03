"""`maestro-celery samples`: the table of samples."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from maestro_celery_plugin.cli.parameter_types import STEP, STUDY
from maestro_celery_plugin.report.sample_rows import Query
from maestro_celery_plugin.report.samples_view import print_rows
from maestro_celery_plugin.report.study_samples import StudySamples
from maestro_celery_plugin.report.table_files import check_file, write_csv, write_table

__all__ = ["command"]

# Rows that a user reads.
DEFAULT_LIMIT = 50


@click.command("samples")
@click.argument("study", type=STUDY)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write: .csv, .json, .npy, or .parquet, which needs the extra [table].",
)
@click.option(
    "--where", metavar="CONDITION", default="", help="Rows to show, such as \"X > 0.3 and state == 'failed'\"."
)
@click.option("--columns", metavar="NAME,...", multiple=True, help="Columns to show; may be repeated. [default: all]")
@click.option("--step", "steps", metavar="NAME", type=STEP, multiple=True, help="Step or step record; may be repeated.")
@click.option(
    "--sort",
    metavar="NAME,...",
    multiple=True,
    help="Columns to sort by; -NAME for a descending order. May be repeated.",
)
@click.option("--limit", type=click.IntRange(1), help="Number of rows. [default: 50 on a terminal, else all]")
@click.option(
    "--read",
    metavar="FILE",
    multiple=True,
    help="File in the directory of each sample whose values become columns: a JSON object, a csv file with a header "
    "and one row, lines key=value, or one value in a .npy file. May be repeated.",
)
def command(
    study: Path,
    output: Path | None,
    where: str,
    columns: tuple[str, ...],
    steps: tuple[str, ...],
    sort: tuple[str, ...],
    limit: int | None,
    read: tuple[str, ...],
) -> None:
    """Show one row for each sample of each submitted step record of the study in the directory STUDY.

    On a terminal, it prints the columns that fit; into a pipe, csv with all of them.
    """
    if output is not None:
        check_file(output)
    query = Query(where=where, columns=_names(columns), steps=steps, sort=_names(sort), limit=limit, read=read)
    rows = StudySamples(study).rows(query)
    if output is not None:
        write_table(rows, output)
        click.echo(f"{_count(len(rows), 'row')} with {_count(len(rows.columns), 'column')}: {output}", err=True)
    elif sys.stdout.isatty():
        print_rows(rows, Console(highlight=False), limit=limit or DEFAULT_LIMIT, chosen=bool(columns))
    else:
        write_csv(rows, sys.stdout)
    for warning in rows.warnings:
        click.echo(f"maestro-celery: warning: {warning}", err=True)


def _names(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return names that are separated by commas."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
