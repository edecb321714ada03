"""The graph of a study's steps: which of them the others wait for, and whose workspaces they name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin import schema
from maestro_celery_plugin.errors import SpecificationError

__all__ = ["ALL_COMBINATIONS", "check_graph"]

# How Maestro's funnels name a step (datastructures/core/study.py:53).
ALL_COMBINATIONS = re.compile(r"_\*|\*")
_WORKSPACE = re.compile(r"\$\(([^\s()]+)\.workspace\)")


def check_graph(study: list[dict[str, Any]], file: str) -> None:
    """Check step names, and which steps others refer to: Maestro ends with a traceback where that is no step.

    Raises:
        SpecificationError: at the first mistake.
    """
    names = [step["name"] for step in study]
    parents: dict[str, list[str]] = {}
    for step in study:
        where = f"study.{step['name']}"
        if names.count(step["name"]) > 1:
            raise SpecificationError.at(file, where, "two steps have this name; each step needs its own.")
        depends = step["run"].get("depends") or []
        parents[step["name"]] = [ALL_COMBINATIONS.sub("", str(parent)) for parent in depends]
        for written, parent in zip(depends, parents[step["name"]], strict=True):
            if parent not in names:
                found = f"unknown step '{written}'; {schema.nearest(parent, names)}"
                raise SpecificationError.at(file, f"{where}.run.depends", found)
    for name in names:
        _check_acyclic(name, parents, (), file)
    for step in study:
        _check_workspaces(step, names, file)


def _check_workspaces(step: Mapping[str, Any], names: list[str], file: str) -> None:
    """Check whose workspaces a step names: Maestro's conductor ends where it does not know one (study.py:555)."""
    for key in ("cmd", "restart"):
        where = f"study.{step['name']}.run.{key}"
        for name in _WORKSPACE.findall(str(step["run"].get(key) or "")):
            if name == step["name"]:
                raise SpecificationError.at(
                    file, where, f"found '$({name}.workspace)'; a step's own workspace is '$(WORKSPACE)'."
                )
            if name not in names:
                found = f"found '$({name}.workspace)', but there is no step '{name}'; {schema.nearest(name, names)}"
                raise SpecificationError.at(file, where, found)


def _check_acyclic(name: str, parents: dict[str, list[str]], via: tuple[str, ...], file: str) -> None:
    if name in via:
        circle = " -> ".join((*via[via.index(name) :], name))
        raise SpecificationError.at(
            file, f"study.{name}.run.depends", f"steps wait for each other: {circle}."
        )
    for parent in parents[name]:
        _check_acyclic(parent, parents, (*via, name), file)
    parents[name] = []  # seen to be without a circle
