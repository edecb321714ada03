"""`maestro-celery convert`: what a specification of Merlin means here, and one that gives Merlin's results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from maestro_celery_plugin.broker.choice import choose, masked
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.files import write_atomically
from maestro_celery_plugin.maestro.command_line import check_specification_file
from maestro_celery_plugin.maestro.validation import faults_of
from maestro_celery_plugin.spec.merlin_conversion import Conversion, Finding, Kind, convert

__all__ = ["command"]

_LEFT_TO_DO = 3
_SCRIPTS = ("*.sbatch", "*.bsub", "*.sh")
_RUN_WORKERS = "merlin run-workers"


@click.command("convert")
@click.argument("specification", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="File for the converted specification."
)
def command(specification: Path, output: Path | None) -> None:
    """List what a SPECIFICATION of Merlin means here, and write one that gives Merlin's results.

    Comments and order stay. Exit code 0: nothing is left to do; 3: a line with 'to do' needs your decision; 1: the
    specification cannot be read.
    """
    check_specification_file(str(specification))
    if output is not None and output.exists():
        if output.samefile(specification):
            raise SpecificationError(f"--output: '{output}' is the specification itself; choose another name.")
        raise SpecificationError(f"--output: '{output}' exists; choose another name, or remove it.")
    text = _text_of(specification)
    converted = convert(text, specification.name)
    of_text = sorted((*converted.findings, *_faults(converted, text, specification)), key=lambda one: one.line)
    findings = [*of_text, *_scripts(specification.absolute().parent), *_broker()]
    for finding in findings:
        where = f"{finding.where}: " if finding.where else ""
        place = f"{specification}:{finding.line}: {where}" if finding.line else where
        click.echo(f"{place}{finding.kind.value}: {finding.text}")
    changes = sum(finding.kind is Kind.CHANGED for finding in findings)
    if output is not None:
        _write(output, converted.text)
        click.echo(f"{output}: written, with {changes} change{'' if changes == 1 else 's'}.")
    elif changes:
        click.echo(f"{specification}: unchanged; `-o FILE` writes the specification with {changes} of these.")
    if not changes:
        click.echo(f"{specification}: no change is needed.")
    sys.exit(_LEFT_TO_DO if any(finding.kind is Kind.BY_HAND for finding in findings) else 0)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as cause:
        raise SpecificationError.at(path.name, "", f"the file is not UTF-8 ({cause}); save it as UTF-8.") from cause


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as cause:
        problem = f"'{path}' cannot be written ({cause.strerror})"
        raise SpecificationError(f"--output: {problem}; use another path.") from cause


def _faults(converted: Conversion, text: str, path: Path) -> Iterator[Finding]:
    """Yield what would stop the launch of a converted specification, and is not yet among its findings."""
    by_hand = {finding.where for finding in converted.findings if finding.kind is Kind.BY_HAND}
    for fault in faults_of(converted.text, str(path), text):
        problem = fault.problem
        if not any(where == problem.where or where.startswith(f"{problem.where}.") for where in by_hand):
            yield Finding(fault.line, problem.where, Kind.BY_HAND, problem.text)


def _scripts(directory: Path) -> Iterator[Finding]:
    """Yield a finding for each line of a batch script beside the specification that starts Merlin's workers."""
    for pattern in _SCRIPTS:
        for path in sorted((*directory.glob(pattern), *directory.glob(f"scripts/{pattern}"))):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
                if line.strip().startswith(_RUN_WORKERS):
                    where = f"{path.relative_to(directory)}:{number}"
                    text = "`maestro run` submits the allocation and starts the workers; this script is not needed."
                    yield Finding(0, where, Kind.NOTE, text)


def _broker() -> Iterator[Finding]:
    """Yield a finding if a configuration of this user names a broker."""
    choice = choose(None)
    if choice.url is not None:
        text = (
            f"studies use {masked(choice.url)}, from {choice.source}; `maestro run --broker private` needs no server."
        )
        yield Finding(0, "broker", Kind.NOTE, text)
