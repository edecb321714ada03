"""Sample generation: `maestro run` generates the sample file and checks the sample table."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import subprocess
from pathlib import Path

from maestro_celery_plugin.config.settings import SampleSettings
from maestro_celery_plugin.config.tokens import substitute
from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.files import tail
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["with_samples"]

LOGGER = logging.getLogger(__name__)

# The number of output lines of the sample generation in an error message.
OUTPUT_LINES = 10


def with_samples(plan: StudyPlan, samples: SampleSettings, values: dict[str, str]) -> StudyPlan:
    """Return the plan of a study with its sample table, which `merlin.samples.generate` generates first if it is set.

    Args:
        plan: The plan without a sample table.
        samples: The settings of the samples.
        values: The values of Maestro's variables.

    Raises:
        SampleError: the samples cannot be generated or read.
    """
    defined = {
        **values,
        "MERLIN_INFO": str(plan.info),
        "MERLIN_WORKSPACE": str(plan.root),
        "MERLIN_TIMESTAMP": plan.timestamp,
    }
    path = Path(substitute(samples.file, defined)).expanduser().absolute()
    if samples.generate:
        _generate(plan, substitute(samples.generate.cmd, defined))
    try:
        table = open_table(path, samples.column_labels, plan.info)
        first = table.row(0)
    except SampleError as cause:
        raise SampleError(f"{cause}{_output_of(plan) if samples.generate else ''}") from cause
    LOGGER.info("%d samples in '%s'.", len(table), path)
    if tuple(value.strip() for value in first) == samples.column_labels:
        LOGGER.warning(
            "'%s': the first row contains the column labels, but counts as sample 0. Begin a header line with '# '.",
            path,
        )
    return dataclasses.replace(plan, table=path, rows=len(table))


def _generate(plan: StudyPlan, command: str) -> None:
    """Run the sample generation in ``merlin_info`` of the study, which keeps script, stdout and stderr.

    Raises:
        SampleError: the command cannot start, or ends with a code other than 0.
    """
    shell = plan.settings.batch.shell
    script = plan.info / "cmd.sh"
    script.write_text(f"#!{shell}\n\n{command}\n")
    script.chmod(0o755)
    with (plan.info / "cmd.out").open("wb") as out, (plan.info / "cmd.err").open("wb") as err:
        try:
            code = subprocess.run(
                [*shlex.split(shell), str(script)],
                cwd=plan.info,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=False,
            ).returncode
        except OSError as cause:
            raise SampleError(f"merlin.samples.generate.cmd: '{shell}' (batch.shell) cannot start: {cause}") from cause
    if code != 0:
        end = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise SampleError(f"merlin.samples.generate.cmd: the command ended with {end}.{_output_of(plan)}")


def _output_of(plan: StudyPlan) -> str:
    """Return the path of the script of the sample generation, and the last lines of its output."""
    text = f"\nThe script of generate.cmd is '{plan.info / 'cmd.sh'}'. The last lines of its output:"
    for name in ("cmd.err", "cmd.out"):
        lines = tail(plan.info / name, size=10_000).splitlines()
        if lines:
            return "\n".join((text, *(f"  {line}" for line in lines[-OUTPUT_LINES:])))
    return f"{text} (no output)"
