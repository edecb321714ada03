"""The values of tokens: values that are the same for all samples of a study, and values of one sample."""

from __future__ import annotations

from collections.abc import Sequence

from maestro_celery_plugin.config.tokens import names_in
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.states import ExitCode

__all__ = ["exit_code_values", "sample_values", "study_values"]


def exit_code_values() -> dict[str, str]:
    """Return the exit codes by token name, such as ``MERLIN_SUCCESS``."""
    return {f"MERLIN_{code.name}": str(code.value) for code in ExitCode}


def study_values(root: str, timestamp: str, labels: Sequence[str], paths: SamplePaths, text: str) -> dict[str, str]:
    """Return the values of the tokens that are the same for every sample of a study.

    Args:
        root: The study's workspace, ``$(OUTPUT_PATH)``.
        timestamp: Launch time of the study, ``YYYYMMDD-HHMMSS``.
        labels: The column labels; empty for a study without samples.
        paths: The directory hierarchy of the samples.
        text: The text with the tokens; ``MERLIN_PATHS_ALL`` is long, so it is computed only when the text uses it.

    Returns:
        The values by name; names in another case only as Merlin ignores it (study/step.py:436), and the text uses it.
    """
    values = {
        "MERLIN_WORKSPACE": root,
        "MERLIN_INFO": f"{root}/merlin_info",
        "MERLIN_TIMESTAMP": timestamp,
        "MERLIN_GLOB_PATH": paths.glob,
        **exit_code_values(),
    }
    if labels:
        values["MERLIN_SAMPLE_NAMES"] = " ".join(labels)
    used = names_in(text)
    if any(name.upper() == "MERLIN_PATHS_ALL" for name in used):
        values["MERLIN_PATHS_ALL"] = " ".join(paths.all())
    any_case = {"MERLIN_GLOB_PATH", "MERLIN_PATHS_ALL", *exit_code_values()}
    return values | {name: values[name.upper()] for name in used if name.upper() in any_case}


def sample_values(labels: Sequence[str], row: Sequence[str], index: int, path: str) -> dict[str, str]:
    """Return the values of the tokens of one sample."""
    values = dict(zip(labels, row, strict=True))
    values["MERLIN_SAMPLE_ID"] = str(index)
    values["MERLIN_SAMPLE_PATH"] = path
    values["MERLIN_SAMPLE_VECTOR"] = " ".join(row)
    values["MERLIN_SAMPLE_NAMES"] = " ".join(labels)
    return values
