"""`maestro-celery validate`: all faults of specifications, without a launch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from maestro_celery_plugin.cli.parameter_types import files
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.config.resources import counted
from maestro_celery_plugin.maestro.command_line import check_generator
from maestro_celery_plugin.maestro.validation import STDIN, Finding, Generator, validate
from maestro_celery_plugin.spec.overrides import Overrides, variables_of
from maestro_celery_plugin.spec.problems import Kind

__all__ = ["command"]


@click.command("validate")
@click.argument("specifications", nargs=-1, required=True, metavar="SPECIFICATION...", shell_complete=files)
@click.option("--here", is_flag=True, help="Count what this machine lacks as a fault, such as a batch command.")
@vars_option
@click.option("--pgen", metavar="FILE", help="Python file of parameters, as for `maestro run`; it runs.")
@click.option("--pargs", metavar="KEY:VALUE", multiple=True, help="Argument for --pgen; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON, with their lines in the file.")
def command(
    specifications: tuple[str, ...],
    here: bool,
    variables: tuple[str, ...],
    pgen: str | None,
    pargs: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the faults of each SPECIFICATION (`-` for the standard input), one per line.

    The checks are those of `maestro run` before it creates a file. Nothing starts, no samples are generated, and no
    broker is contacted. What this machine lacks is a warning, because the specification may be for another machine. The
    exit code is 1 if a specification has a fault, and 0 otherwise.
    """
    faults = (Kind.FAULT, Kind.MACHINE) if here else (Kind.FAULT,)
    overrides, arguments = Overrides(variables=variables_of(variables)), check_generator(pgen, pargs)
    generator = Generator(pgen, arguments) if pgen else None
    found = {name: validate(name, overrides, generator) for name in specifications}
    if as_json:
        click.echo(json.dumps([_to_json(name, findings, faults) for name, findings in found.items()], indent=1))
    else:
        for name, findings in found.items():
            _show(name, findings, faults)
    sys.exit(int(any(finding.problem.kind in faults for findings in found.values() for finding in findings)))


def _show(name: str, findings: Sequence[Finding], faults: Sequence[Kind]) -> None:
    file = "standard input" if name == STDIN else name
    for finding in findings:
        mark = "" if finding.problem.kind in faults else "warning: "
        click.echo(f"{file}: {mark}{finding.problem}")
    if not any(finding.problem.kind in faults for finding in findings):
        warnings = f", {counted(len(findings), 'warning')}" if findings else ""
        click.echo(f"{file}: no faults{warnings}.")


def _to_json(name: str, findings: Sequence[Finding], faults: Sequence[Kind]) -> dict[str, object]:
    problems = [
        {
            "line": finding.line,
            "key": finding.problem.where,
            "text": finding.problem.text,
            "kind": finding.problem.kind.value,
            "is_fault": finding.problem.kind in faults,
        }
        for finding in findings
    ]
    return {"file": name, "is_valid": not any(problem["is_fault"] for problem in problems), "problems": problems}
