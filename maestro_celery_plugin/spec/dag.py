"""The dependency graph of a study: the steps that each step depends on, and the workspaces that it uses."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maestro_celery_plugin.errors import nearest
from maestro_celery_plugin.spec.problems import Kind, Problem

__all__ = ["ALL_COMBINATIONS", "check_graph"]

# The suffix of a step name in `depends` for all parameter combinations, a funnel (datastructures/core/study.py:53).
ALL_COMBINATIONS = re.compile(r"_\*|\*")
# Maestro's pattern for the name of a workspace, which also matches parentheses (study.py:50).
_WORKSPACE = re.compile(r"\$\(([^\s\"'#@\\]+)\.workspace\)")
# A name that a user may take for that of a workspace.
_ANY_SPELLING = re.compile(r"\$\([^()$\n]+\.workspace\s*\)", re.IGNORECASE)


def check_graph(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Check the names of steps and the references to steps; Maestro fails with a traceback for an unknown step."""
    study = data["study"]
    names = [step["name"] for step in study]
    parents: dict[str, list[str]] = {}
    unclear: set[str] = set()  # the steps with unknown dependencies
    for step in study:
        where = f"study.{step['name']}"
        if step["name"] in parents:
            yield Problem(where, "two steps have this name; each step needs its own name.")
        depends = step["run"].get("depends") or []
        of_step = {ALL_COMBINATIONS.sub("", str(parent)): str(parent) for parent in depends}
        for parent, written in of_step.items():
            if parent not in names:
                found = f"unknown step '{written}'; {_nearest_dependency(written, parent, names)}"
                yield Problem(f"{where}.run.depends", found)
                unclear.add(step["name"])
        parents[step["name"]] = [parent for parent in of_step if parent in names]
    unchecked = dict(parents)
    cycles = [problem for name in names for problem in _check_acyclic(name, unchecked, ())]
    yield from cycles
    if cycles:
        return
    yield from _check_order(parents)
    environment = data.get("env") or {}
    inserted = {"SPECROOT", "OUTPUT_PATH", *(environment.get("variables") or {}), *(environment.get("labels") or {})}
    order = _order_of_maestro(parents)
    for step in study:
        waits = not unclear.intersection((step["name"], *_ancestors(step["name"], parents)))
        yield from _check_workspaces(step, parents, order, inserted, check_waits=waits)


def _nearest_dependency(written: str, parent: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown step in `depends`; it keeps the suffix of a funnel."""
    suffix = written[len(parent) :]
    return nearest(written, [f"{name}{suffix}" for name in names])


def _check_order(parents: Mapping[str, Iterable[str]]) -> Iterator[Problem]:
    """Check that each step stands after the steps that it depends on, because Maestro adds them in this order.

    For a step that stands further down, Maestro fails with a traceback (study.py:388).
    """
    above: set[str] = set()
    for name, of_step in parents.items():
        for parent in of_step:
            if parent not in above:
                found = f"the step '{parent}' must stand before '{name}' in the study; move it up."
                yield Problem(f"study.{name}.run.depends", found)
        above.add(name)


def _order_of_maestro(parents: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Return the position of each step in the order in which Maestro makes the workspaces (dag.py:194).

    Of two steps that do not depend on each other, the one further down comes first.
    """
    children: dict[str, list[str]] = {name: [] for name in ("", *parents)}  # "" for Maestro's source
    for name, of_step in parents.items():
        for parent in of_step or ("",):
            children[parent].append(name)
    finished: list[str] = []
    seen: set[str] = set()
    path = [("", iter(children[""]))]  # instead of a recursion, which a long chain of steps would exceed
    while path:
        child = next((child for child in path[-1][1] if child not in seen), None)
        if child is None:
            finished.append(path.pop()[0])
        else:
            seen.add(child)
            path.append((child, iter(children[child])))
    return {name: position for position, name in enumerate(reversed(finished))}


def _check_workspaces(
    step: Mapping[str, Any],
    parents: dict[str, list[str]],
    order: Mapping[str, int],
    inserted: set[str],
    *,
    check_waits: bool,
) -> Iterator[Problem]:
    """Check the workspaces that a step uses.

    Maestro's conductor fails when a workspace does not belong to an earlier step (study.py:555).

    Args:
        step: The step.
        parents: The steps that each step depends on.
        order: The positions of the steps in Maestro's order.
        inserted: Names of tokens whose values Maestro inserts earlier (study.py:384).
        check_waits: Whether to check that the step waits for the steps whose workspaces it uses.
    """
    for key in ("cmd", "restart"):
        where, text = f"study.{step['name']}.run.{key}", str(step["run"].get(key) or "")
        for name in inserted:
            text = text.replace(f"$({name})", "")
        for name in _WORKSPACE.findall(text):
            problem, kind = _workspace_problem(name, step["name"], parents), Kind.FAULT
            if not problem and check_waits and name not in _ancestors(step["name"], parents):
                problem = f"the step does not wait for '{name}'; add it to 'depends'."
                if order[name] < order[step["name"]]:
                    kind = Kind.WARNING
            if problem:
                yield Problem(where, f"found '$({name}.workspace)'; {problem}", kind)
        yield from _check_spelling(text, parents, where)


def _check_spelling(text: str, names: Iterable[str], where: str) -> Iterator[Problem]:
    """Check that Maestro finds each workspace in a command: it would leave another spelling to the shell.

    A command of the shell whose last argument ends with ``.workspace`` is no reference to a step.
    """
    for written in _ANY_SPELLING.findall(text):
        inner = written[2:-1]
        name = inner.strip()[: -len(".workspace")]
        if _WORKSPACE.fullmatch(written) and inner.endswith(".workspace"):
            continue
        is_command = " " in name and shutil.which(name.split()[0]) is not None
        if is_command and not difflib.get_close_matches(name, names, cutoff=0.7):
            continue
        problem = "write '.workspace' in lower case, without blanks around the name."
        if re.search(r"[\s\"'#@\\]", name):
            problem = (
                "Maestro does not find a step whose name has a blank, a quote, '#', '@' or a backslash; rename it."
            )
        yield Problem(where, f"found '{written}'; {problem}")


def _workspace_problem(name: str, step: str, parents: dict[str, list[str]]) -> str:
    """Return the problem with the name of a workspace that a step uses; an empty text without a problem."""
    if "$(" in name:
        return "Maestro reads the whole text as one name; separate the tokens with a blank or a quote."
    if name == step:
        return "use '$(WORKSPACE)' for the workspace of the step itself."
    if name not in parents:
        return f"there is no step '{name}'; {nearest(name, parents)}"
    if step in _ancestors(name, parents):
        return f"the step '{name}' depends on this step, and has no workspace yet."
    return ""


def _ancestors(name: str, parents: dict[str, list[str]]) -> set[str]:
    """Return all steps that a step depends on, directly or indirectly."""
    found: set[str] = set()
    pending = [*parents[name]]
    while pending:
        ancestor = pending.pop()
        if ancestor not in found:
            found.add(ancestor)
            pending += parents[ancestor]
    return found


def _check_acyclic(name: str, parents: dict[str, list[str]], path: tuple[str, ...]) -> Iterator[Problem]:
    if name in path:
        cycle = " -> ".join((*path[path.index(name) :], name))
        problem = "the step depends on itself." if len(path) == 1 else f"these steps depend on each other: {cycle}."
        yield Problem(f"study.{name}.run.depends", problem)
        return
    for parent in parents[name]:
        yield from _check_acyclic(parent, parents, (*path, name))
    parents[name] = []  # checked: the step is not in a cycle
