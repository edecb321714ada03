"""The texts of the versions of a specification that a study keeps (`study/provenance.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.maestro.yaml_text import dump, with_times
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.samples.token_values import study_values
from maestro_celery_plugin.spec.checks import BLOCKS, without_empty_keys
from maestro_celery_plugin.spec.overrides import Overrides
from maestro_celery_plugin.spec.variables import Variables, filled
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.provenance import SpecificationTexts

__all__ = ["LaunchedSpecification", "specification_texts"]


@dataclasses.dataclass(frozen=True)
class LaunchedSpecification:
    """A specification without faults at its launch.

    Attributes:
        data: The specification of the user, with all blocks.
        batch: Its `batch`, with the keys of the user's configuration.
        overrides: What the command line sets in its place.
        file: Its name, for messages.
    """

    data: Mapping[str, Any]
    batch: Mapping[str, Any]
    overrides: Overrides
    file: str

    def versions(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the specification with the final values of the variables in `env`, and with those in all blocks.

        The values of `--env-file` may be secrets: these variables stay as the user has written them, and so do their
        tokens.
        """
        overrides = dataclasses.replace(self.overrides, environment={})
        env = overrides.applied_to(self.data.get("env"), self.file)
        literal = overrides.names(env)
        launched = {**self.data, **{name: block for name, block in (("env", env), ("batch", self.batch)) if block}}
        known = {name: block for name, block in launched.items() if name in BLOCKS and name != "user"}
        variables = Variables({**known, "env": _without(env, self.overrides.names(env) - literal)}, literal)
        expanded = with_times(without_empty_keys(variables.insert_into(known)))
        if overrides.samples_file:
            for version in (launched, expanded):
                version["merlin"] = overrides.samples_of(version.get("merlin"), self.file)
        return variables.resolved(launched), expanded


def _without(env: Any, names: frozenset[str]) -> dict[str, Any]:
    """Return `env` without some variables and labels."""
    return {
        block: {name: value for name, value in values.items() if str(name) not in names}
        if block in ("variables", "labels") and values
        else values
        for block, values in (env or {}).items()
    }


def _with_values(env: Any, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the variables and labels of `env` with the values of tokens."""
    return {block: filled(env[block], values) for block in ("variables", "labels") if env.get(block)}


def specification_texts(
    plan: StudyPlan, specification: LaunchedSpecification, generated: Mapping[str, Any] | None
) -> SpecificationTexts:
    """Return the versions of a specification for a study.

    Args:
        plan: The study.
        specification: The specification.
        generated: The parameters of `--pgen`, as `global.parameters`; None without them.
    """
    partial, expanded = specification.versions()
    paths = SamplePaths(1, plan.level_max_dirs)
    known = {
        **study_values(str(plan.root), plan.timestamp, plan.column_labels, paths, ""),
        "OUTPUT_PATH": str(plan.root),
        **plan.specification_files,
    }
    if plan.specification is not None:
        root = {"SPECROOT": str(plan.specification.parent)}
        known.update(root)
        if "env" in partial:  # a launch of this version would set it to `merlin_info`
            partial["env"] = {**partial["env"], **_with_values(partial["env"], root)}
    del known["MERLIN_GLOB_PATH"]  # it follows from the number of samples, which may not be generated yet
    parameters = {} if generated is None else {"global.parameters": generated}
    return SpecificationTexts(dump(partial), dump(filled({**expanded, **parameters}, known)))
