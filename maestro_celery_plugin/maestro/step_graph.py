"""The graph of a study's step records, as its conductor makes it from Maestro's pickle of the study."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from maestro_celery_plugin.config.step_entry import STEP_KEY, is_native
from maestro_celery_plugin.errors import StudyError, nearest

__all__ = ["GraphNode", "graph_of", "load_study", "named", "nodes_of", "parents_of", "pickle_of"]

# Texts with which a script reads the results of all samples.
_ALL_SAMPLES = ("$(MERLIN_GLOB_PATH)", "$(MERLIN_PATHS_ALL)")
# Texts that make a path that of one sample.
_ONE_SAMPLE = ("$(MERLIN_SAMPLE_PATH)", "$(MERLIN_SAMPLE_ID)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphNode:
    """A step record in the graph.

    Attributes:
        root: The study's workspace.
        name: Maestro's name of the step record.
        step: Name of the step.
        relative: Path of its workspace below that of the study.
        parents: The names of the step records that it depends on.
        sampled: Whether it runs once per sample.
        is_native: Whether Maestro runs it itself.
        text: Its scripts, in which the tokens of samples are not replaced yet.
    """

    root: Path
    name: str
    step: str
    relative: str
    parents: tuple[str, ...]
    sampled: bool
    is_native: bool
    text: str

    def reads_one_sample_of(self, other: GraphNode) -> bool:
        """Tell whether each sample depends only on the same sample of a step record that it depends on.

        Each path below the workspace of the other step record must then be that of a sample.
        """
        if not (self.sampled and other.sampled) or any(token in self.text.upper() for token in _ALL_SAMPLES):
            return False
        # A funnel names the directory of the step, above the workspaces for the values of parameters.
        place = self.root / other.relative.partition("/")[0]
        words = re.findall(rf"{re.escape(str(place))}(?![\w.-])[^\s'\";|&<>]*", self.text)
        return all(any(token in word for token in _ONE_SAMPLE) for word in words)


def pickle_of(root: Path) -> Path:
    """Return Maestro's pickle of a study (conductor.py:216).

    Raises:
        StudyError: there is none, or more than one.
    """
    found = sorted(root.glob("*.study.pkl"))
    if len(found) != 1:
        raise StudyError(f"The study '{root}' has {len(found)} files '*.study.pkl'; Maestro needs exactly one.")
    return found[0]


def load_study(root: Path) -> Any:
    """Return Maestro's `Study`.

    Raises:
        StudyError: the pickle of the study cannot be read.
    """
    # Imported in functions only: a resume that needs no graph does not wait for it.
    from maestrowf.conductor import Conductor

    path = pickle_of(root)
    try:
        return Conductor.load_study(str(root))
    except Exception as cause:  # a pickle may raise anything
        raise StudyError(f"'{path}' cannot be read ({cause}); restore it from a backup.") from cause


def graph_of(study: Any) -> list[GraphNode]:
    """Return the step records of a study, each after those that it depends on.

    Raises:
        StudyError: Maestro cannot make the graph.
    """
    root = Path(study.output_path)
    try:
        with _quiet_maestro():
            _, graph = study.stage()
    except Exception as cause:  # Maestro raises `Exception`
        raise StudyError(f"Maestro cannot stage the study '{root}': {cause}") from cause
    return nodes_of(root, graph)


def named(nodes: list[GraphNode], names: Collection[str]) -> list[GraphNode]:
    """Return the step records that a user has named with `--step`.

    Args:
        nodes: The step records of a study.
        names: Names of steps, or of step records.

    Raises:
        StudyError: the study does not have one of them.
    """
    known = {name for node in nodes for name in (node.step, node.name)}
    for name in names:
        if name not in known:
            steps = dict.fromkeys(node.step for node in nodes)
            raise StudyError(f"--step: the study has no step '{name}'; {nearest(name, steps)}")
    return [node for node in nodes if node.step in names or node.name in names]


def nodes_of(root: Path, graph: Any) -> list[GraphNode]:
    """Return the step records of Maestro's `ExecutionGraph`, which may run, each after those that it depends on."""
    return list(_nodes(root, graph))


def parents_of(graph: Any) -> dict[str, list[str]]:
    """Return what each node of the graph depends on; Maestro removes a dependency when it has finished."""
    parents: dict[str, list[str]] = {key: [] for key in graph.values}
    for parent, children in graph.adjacency_table.items():
        for child in children:
            parents[child].append(parent)
    return parents


def _nodes(root: Path, graph: Any) -> Iterator[GraphNode]:
    names = {key: record.name for key, record in graph.values.items() if record is not None}
    parents = parents_of(graph)
    for key, record in graph.values.items():
        if record is None:  # the source, on which the first steps depend
            continue
        run, workspace = record.step.run, Path(record.workspace.value)
        relative = workspace.relative_to(root)
        entry: Mapping[str, Any] = {} if is_native(run) else run[STEP_KEY]
        yield GraphNode(
            root=root,
            name=record.name,
            step=entry.get("step", relative.parts[0]),
            relative=str(relative),
            parents=tuple(names[parent] for parent in sorted(parents[key]) if parent in names),
            sampled=bool(entry.get("sampled")),
            is_native=is_native(run),
            text=f"{run['cmd']}\n{run['restart']}",
        )


@contextlib.contextmanager
def _quiet_maestro() -> Iterator[None]:
    """Keep the messages of the staging from the terminal."""
    logger = logging.getLogger("maestrowf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
