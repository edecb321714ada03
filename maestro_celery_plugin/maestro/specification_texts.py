"""The texts of the versions of a specification that a study keeps (`study/provenance.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.maestro.yaml_text import dump
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.samples.token_values import study_values
from maestro_celery_plugin.spec.variables import filled
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.provenance import SpecificationTexts

__all__ = ["specification_texts"]


def specification_texts(
    plan: StudyPlan, partial: Mapping[str, Any], expanded: Mapping[str, Any], generated: Mapping[str, Any] | None
) -> SpecificationTexts:
    """Return the versions of a specification for a study.

    Args:
        plan: The study.
        partial: The specification with the final values of the variables in `env`.
        expanded: The specification with the values of variables in all blocks.
        generated: The parameters of `--pgen`, as `global.parameters`; None without them.
    """
    paths = SamplePaths(1, plan.level_max_dirs)
    known = {
        **study_values(str(plan.root), plan.timestamp, plan.column_labels, paths, ""),
        "OUTPUT_PATH": str(plan.root),
        **plan.specification_files,
    }
    if plan.specification is not None:
        known["SPECROOT"] = str(plan.specification.parent)
    del known["MERLIN_GLOB_PATH"]  # it follows from the number of samples, which may not be generated yet
    parameters = {} if generated is None else {"global.parameters": generated}
    return SpecificationTexts(dump(partial), dump(filled({**expanded, **parameters}, known)))
