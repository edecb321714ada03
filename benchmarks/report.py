"""The report: a table for the terminal, or a Markdown table for the documentation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rows import COLUMNS, Row
from benchmarks.settings import BenchSettings

__all__ = ["machine", "print_markdown", "print_table"]


def machine() -> str:
    """Return the machine and the versions of the measurement."""
    try:
        version = importlib.metadata.version("maestro-celery-plugin")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    cpus = len(os.sched_getaffinity(0))
    return (
        f"{_cpu_model()}, {cpus} {'core' if cpus == 1 else 'cores'}; Linux {platform.release().partition('-')[0]}; "
        f"Python {platform.python_version()}; maestro-celery-plugin {version}"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def notes(settings: BenchSettings) -> list[str]:
    """Return the explanations of the cases and columns."""
    return [
        "Null samples: one-line bash scripts, each in its own directory with script, stdout and stderr file, "
        f"{settings.slots} at a time; {_rounds(settings.rounds)}.",
        f"per sample: whole run divided by its {settings.large} samples, with start and end of broker, workers and "
        "servers; Merlin's workers stay: its run ends with the step after the samples.",
        f"marginal: time to the output of the last sample, {settings.large} samples minus {settings.small}, per "
        "sample; vs. bare loop: divided by the bare loop's marginal time of the same round.",
        "peak memory: resident memory of all processes of the tool, its server and the running samples (read four "
        "times a second; shared pages count in each process); for a submission, only `maestro run`.",
        "files + dirs: what each additional sample leaves behind.",
        "Slurm nodes: a real cluster of four nodes on this machine; sample time divided by slot time, from the first "
        "start of a sample to the last.",
    ]


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"medians of {count} interleaved rounds"


def print_table(rows: list[Row], settings: BenchSettings) -> None:
    """Print the table to the terminal."""
    console = Console(width=None if Console().is_terminal else 180)
    table = Table(title=machine(), show_lines=True)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("case", "goal") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row.cells)
    console.print(table)
    for note in notes(settings):
        console.print(note, markup=False, highlight=False)


def print_markdown(rows: list[Row], settings: BenchSettings) -> None:
    """Print the table as Markdown."""
    print(f"Measured on {machine()}.\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "|".join("---" if name in ("case", "goal") else "---:" for name in COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row.cells) + " |")
    print()
    for note in notes(settings):
        print(f"* {note}")
