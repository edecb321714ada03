"""The graph of a study's steps: which of them the others wait for, and whose workspaces they name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from maestro_celery_plugin.config import schema
from maestro_celery_plugin.errors import SpecificationError

__all__ = ["ALL_COMBINATIONS", "check_graph"]

# How Maestro's funnels name a step (datastructures/core/study.py:53).
ALL_COMBINATIONS = re.compile(r"_\*|\*")
# What Maestro takes for the name of a workspace: as much as it can, brackets and all (study.py:50).
_WORKSPACE = re.compile(r"\$\(([^\s\"'#@\\]+)\.workspace\)")


def check_graph(data: Mapping[str, Any], file: str) -> None:
    """Check step names, and which steps others refer to: Maestro ends with a traceback where that is no step.

    Raises:
        SpecificationError: at the first mistake.
    """
    study = data["study"]
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
    unseen = dict(parents)
    for name in names:
        _check_acyclic(name, unseen, (), file)
    environment = data.get("env") or {}
    early = {"SPECROOT", "OUTPUT_PATH", *(environment.get("variables") or {}), *(environment.get("labels") or {})}
    for step in study:
        _check_workspaces(step, parents, early, file)


def _check_workspaces(step: Mapping[str, Any], parents: dict[str, list[str]], early: set[str], file: str) -> None:
    """Check whose workspaces a step names: Maestro's conductor ends where it does not know one yet (study.py:555).

    Args:
        step: The step.
        parents: The steps that each step waits for.
        early: Names of which Maestro has put in the values by then (study.py:384).
        file: Name of the specification, for messages.
    """
    for key in ("cmd", "restart"):
        text = str(step["run"].get(key) or "")
        for name in early:
            text = text.replace(f"$({name})", "")
        for name in _WORKSPACE.findall(text):
            problem = _problem_of(name, step["name"], parents)
            if problem:
                raise SpecificationError.at(
                    file, f"study.{step['name']}.run.{key}", f"found '$({name}.workspace)'; {problem}"
                )


def _problem_of(name: str, step: str, parents: dict[str, list[str]]) -> str:
    """Return what is wrong with the name of a workspace in a step; empty when nothing is."""
    if "$(" in name:
        return "Maestro takes all of it for one name; put a blank or a quote between the tokens."
    if name == step:
        return "a step's own workspace is '$(WORKSPACE)'."
    if name not in parents:
        return f"there is no step '{name}'; {schema.nearest(name, parents)}"
    if step in _ancestors(name, parents):
        return f"the step '{name}' waits for this one, and has no workspace before."
    return ""


def _ancestors(name: str, parents: dict[str, list[str]]) -> set[str]:
    """Return all steps that a step waits for, directly or not."""
    found: set[str] = set()
    left = [*parents[name]]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += parents[one]
    return found


def _check_acyclic(name: str, parents: dict[str, list[str]], via: tuple[str, ...], file: str) -> None:
    if name in via:
        circle = " -> ".join((*via[via.index(name) :], name))
        raise SpecificationError.at(
            file, f"study.{name}.run.depends", f"steps wait for each other: {circle}."
        )
    for parent in parents[name]:
        _check_acyclic(parent, parents, (*via, name), file)
    parents[name] = []  # seen to be without a circle
