"""What a specification of Merlin means here that it does not mean there, and the edits that give Merlin's results.

An edit replaces a few characters of the text, so that comments, order and layout stay. `convert` reads its own result
again and compares it with what the edits should have changed.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from enum import Enum
from typing import Any

import yaml

from maestro_celery_plugin.config.tokens import RESERVED
from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.spec.checks import check_shape
from maestro_celery_plugin.spec.problems import passed
from maestro_celery_plugin.spec.token_checks import MAESTRO_TOKENS

__all__ = ["Conversion", "Finding", "Kind", "convert"]

_Path = tuple[str, ...]


class Kind(Enum):
    """What is to be done about a finding."""

    CHANGED = "changed"
    """The conversion changes it."""
    BY_HAND = "to do"
    """Only the user can decide it."""
    NOTE = "note"
    """Nothing; it is good to know."""


_LIMIT_KEY, _NO_LIMIT = "max_failures", "100%"
_OUTPUT_TOKEN, _ABOVE = "$(OUTPUT_PATH)", "/.."
_OUTPUT_VARIABLE = ("env", "variables", "OUTPUT_PATH")
_COMMANDS = ("cmd", "restart")
_TOKEN = re.compile(r"\$\(([^\s()]+)\)")
_MERLIN = re.compile(
    r"(?:^|[\s;&|(\"'])merlin[ \t]+(run-workers|run|restart|purge|stop-workers|query-workers|queue-info|status"
    r"|detailed-status|monitor|cancel|config|server|database|\$\([^\s()]+\))(?=\s|$)"
)
# The commands that the small `merlin` of samples has (`cli/merlin_arguments.py`).
_SMALL_MERLIN = (
    *("run", "run-workers", "restart", "purge", "stop-workers", "query-workers", "queue-info", "cancel"),
    *("status", "detailed-status", "monitor", "database"),
)
_SHELL_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
# Environment variables that programs read themselves.
_OF_PROGRAMS = re.compile(
    r"(?:PATH|(?:LD_LIBRARY_|PYTHON|MODULE)PATH|LD_PRELOAD|HOME|TMPDIR|CONDA_\w+|VIRTUAL_ENV|\w*_NUM_THREADS|(?:OMP|KMP|MKL|CUDA|HIP|ROCR|MPI\w*|I_MPI)_\w+)"
)
_ALLOCATING = ("slurm", "lsf", "lsf-srun", "flux")
# Tokens of exit codes, and what they do here.
_CODES = {
    "$(MERLIN_HARD_FAIL)": (
        Kind.BY_HAND,
        "fails the step and the steps that depend on it, which run in Merlin; `$(MERLIN_SOFT_FAIL)` lets them run.",
    ),
    "$(MERLIN_STOP_WORKERS)": (
        Kind.NOTE,
        "is not needed at the end of a study: its workers and allocations end by themselves.",
    ),
}
# Keys of a step that have another effect here.
_STEP_KEYS = {
    "pre": (
        Kind.BY_HAND,
        "stops the launch; Merlin does not run it: remove the key, or put its commands at the beginning of 'cmd'.",
    ),
    "post": (
        Kind.BY_HAND,
        "stops the launch; Merlin does not run it: remove the key, or put its commands at the end of 'cmd'.",
    ),
    "batch": (Kind.NOTE, "means workers of its own if it differs from that of the study; Merlin only uses `type`."),
    "priority": (Kind.NOTE, "orders the samples that wait for workers; Merlin does not use it."),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A place that means something else here.

    Attributes:
        line: Its line, from 1.
        where: The dotted path of the key.
        kind: What is to be done.
        text: What it means, or what was changed.
    """

    line: int
    where: str
    kind: Kind
    text: str


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted specification.

    Attributes:
        text: The specification with all edits.
        findings: What differs, in the order of the lines.
    """

    text: str
    findings: tuple[Finding, ...]


@dataclasses.dataclass(frozen=True)
class _Edit:
    """The text that replaces the characters from `start` up to, without, `end`."""

    start: int
    end: int
    text: str


def convert(text: str, file: str) -> Conversion:
    """Return a specification that gives Merlin's results here.

    Args:
        text: A specification of Merlin.
        file: Its name, for messages.

    Raises:
        SpecificationError: the text is no specification, or its layout does not allow the edits.
    """
    try:
        data, root = parsed_yaml(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as cause:
        raise SpecificationError.at(file, "", f"invalid YAML: {cause}") from cause
    if root is None or not isinstance(data, dict) or not isinstance(data.get("study"), list):
        raise SpecificationError.at(file, "study", "the block is missing, so this is not a specification.")
    passed(check_shape(data), file)
    search = _Search(text, data)
    search.add_limits(root)
    search.visit(root, ())
    converted = _edited(text, search.edits)
    search.apply()
    if not _is(converted, data):
        places = ", ".join(finding.where for finding in search.findings if finding.kind is Kind.CHANGED)
        raise SpecificationError.at(
            file, "", f"the layout of the file does not allow these changes; make them by hand: {places}."
        )
    return Conversion(converted, tuple(sorted(search.findings, key=lambda finding: finding.line)))


class _Search:
    """Collects findings and edits of a document, whose values are in `data`."""

    def __init__(self, text: str, data: dict[str, Any]) -> None:
        self.findings: list[Finding] = []
        self.edits: list[_Edit] = []
        self._text = text
        self._data = data
        self._seen: set[int] = set()
        env = data.get("env") or {}
        variables = env.get("variables") or {}
        self._variables = set(map(str, variables)) - {"OUTPUT_PATH"}
        self._output = str(variables.get("OUTPUT_PATH") or f"{_OUTPUT_TOKEN}{_ABOVE}")
        samples = (data.get("merlin") or {}).get("samples")
        labels = samples.get("column_labels") if isinstance(samples, dict) else None
        self._labels = {str(label).casefold(): str(label) for label in (labels if isinstance(labels, list) else ())}
        others = {*variables, *(env.get("labels") or {}), *(data.get("global.parameters") or {})}
        self._exact = {*map(str, others), *self._labels.values(), *RESERVED, *MAESTRO_TOKENS}

    def add_limits(self, root: yaml.Node) -> None:
        """Let no step fail because of its exit codes; a block that several steps share gets the key once."""
        blocks: dict[int, tuple[yaml.MappingNode, _Path]] = {}
        study = _entries(root)["study"]
        for number, step in enumerate(study.value):
            run = _entries(step).get("run")
            if isinstance(run, yaml.MappingNode) and run.value and _LIMIT_KEY not in self._data["study"][number]["run"]:
                blocks.setdefault(id(run), (run, ("study", _name_of(step, number), "run")))
        for node, path in blocks.values():
            start = node.value[0][0].start_mark
            entry = f"{_LIMIT_KEY}: {_NO_LIMIT}"
            newline = "\r\n" if "\r\n" in self._text else "\n"
            separator = ", " if node.flow_style else f"{newline}{' ' * start.column}"
            self.edits.append(_Edit(start.index, start.index, entry + separator))
            text = f"added '{entry}': as in Merlin, the steps after it run whatever fails here."
            self._find(start.index, path, Kind.CHANGED, text)

    def visit(self, node: yaml.Node, path: _Path) -> None:
        """Search a node and what is below it; a block with an anchor is searched once."""
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            if path and path[-1] == "batch" and path[0] in ("batch", "merlin"):
                self._search_batch(node, path)
            for key, value in node.value:
                self._search_key(key, value, path)
                self.visit(value, (*path, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.visit(item, (*path, _name_of(item, number)))
        else:
            self._search_tokens(node, path)
            if path[-1:] and path[-1] in _COMMANDS:
                self._search_merlin(node, path)
                self._search_shell_variables(node, path)

    def _search_key(self, key: yaml.Node, value: yaml.Node, path: _Path) -> None:
        if path == ("env", "variables") and key.value in self._variables and _OF_PROGRAMS.fullmatch(key.value):
            text = f"is no environment variable of the samples, as with Merlin's workers; {_export(key.value)}."
            self._find(key.start_mark.index, (*path, key.value), Kind.BY_HAND, text)
        if path[:1] == ("study",) and path[2:] == ("run",) and value.value and key.value in _STEP_KEYS:
            self._find(key.start_mark.index, (*path, key.value), *_STEP_KEYS[key.value])
        if path == ("env",) and key.value == "sources" and value.value:
            text = "runs before each step whose interpreter is a shell; Merlin ignores it."
            self._find(key.start_mark.index, (*path, key.value), Kind.NOTE, text)

    def _search_batch(self, node: yaml.Node, path: _Path) -> None:
        keys = _entries(node)
        kind = keys.get("type")
        name = str(kind.value) if kind is not None else ""
        if kind is not None and name == "pbs":
            text = "'pbs' is not supported, so the launch stops; choose another type."
            self._find(kind.start_mark.index, (*path, "type"), Kind.BY_HAND, text)
        if kind is not None and name in _ALLOCATING:
            limit = "" if "walltime" in keys else " Set its 'walltime'; without it, LSF refuses, others use a default."
            text = f"`maestro run` submits this allocation and starts the workers in it.{limit}"
            self._find(kind.start_mark.index, path, Kind.NOTE, text)

    def _search_tokens(self, node: yaml.Node, path: _Path) -> None:
        first = node.start_mark.index
        for match in _TOKEN.finditer(self._text, first, node.end_mark.index):
            new = self._replacement(match, path)
            if new != match[0]:
                self.edits.append(_Edit(match.start(), match.end(), new))
                text = f"'{match[0]}' is now '{new}', which is what Merlin makes of it."
                self._find(match.start(), path, Kind.CHANGED, text)
            elif match[0] in _CODES and path[-1] in _COMMANDS:
                kind, text = _CODES[match[0]]
                self._find(match.start(), path, kind, f"{match[0]} {text}")

    def _search_merlin(self, node: yaml.Node, path: _Path) -> None:
        first = node.start_mark.index
        for match in _MERLIN.finditer(self._text[first : node.end_mark.index]):
            kind, means = Kind.BY_HAND, "is Merlin's command; docs/merlin.md has that of the plugin."
            if match[1] in _SMALL_MERLIN:
                kind, means = Kind.NOTE, "does the same here, unless a real Merlin is on the PATH of samples."
            self._find(first + match.start(1), path, kind, f"`merlin {match[1]}` {means}")

    def _search_shell_variables(self, node: yaml.Node, path: _Path) -> None:
        first, script = node.start_mark.index, self._text[node.start_mark.index : node.end_mark.index]
        seen: set[str] = set()
        for match in _SHELL_VARIABLE.finditer(script):
            name = match[1]
            if name in self._variables - seen and not re.search(rf"\b{name}=", script):
                seen.add(name)
                text = f"'{match[0]}' has no value here; Merlin's workers set it to that in env; {_export(name)}."
                self._find(first + match.start(), path, Kind.BY_HAND, text)

    def _replacement(self, match: re.Match[str], path: _Path) -> str:
        """Return the text that means here what a token means in Merlin."""
        token, name = match[0], match[1]
        if token == _OUTPUT_TOKEN and path != _OUTPUT_VARIABLE and not match.string.startswith(_ABOVE, match.end()):
            return self._output
        if path[-1] in _COMMANDS and name not in self._exact and name.casefold() in self._labels:
            return f"$({self._labels[name.casefold()]})"
        return token

    def _find(self, index: int, path: _Path, kind: Kind, text: str) -> None:
        self.findings.append(Finding(self._text.count("\n", 0, index) + 1, ".".join(path), kind, text))

    def apply(self) -> None:
        """Change `data` as the edits change the text."""
        for step in self._data["study"]:
            if isinstance(step, dict) and isinstance(step.get("run"), dict) and step["run"]:
                step["run"].setdefault(_LIMIT_KEY, _NO_LIMIT)
        self._apply(self._data, (), set())

    def _apply(self, item: Any, path: _Path, seen: set[int]) -> None:
        if not isinstance(item, dict | list) or id(item) in seen:
            return
        seen.add(id(item))
        for key, value in item.items() if isinstance(item, dict) else enumerate(item):
            below = (*path, str(key))
            if isinstance(value, str):
                item[key] = _TOKEN.sub(functools.partial(self._replacement, path=below), value)
            self._apply(value, below, seen)


def _export(name: str) -> str:
    return f"write `export {name}=$({name})` into the command, or use `maestro run --env-file`"


def _is(text: str, data: Any) -> bool:
    try:
        return bool(parsed_yaml(text) == data)
    except yaml.YAMLError:
        return False


def _entries(node: yaml.Node) -> dict[str, yaml.Node]:
    return {str(key.value): value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _name_of(node: yaml.Node, number: int) -> str:
    """Return the name of a step, or the number of another item."""
    name = _entries(node).get("name")
    return str(name.value) if name is not None else str(number)


def _edited(text: str, edits: list[_Edit]) -> str:
    parts, end = [], 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        parts += [text[end : edit.start], edit.text]
        end = edit.end
    return "".join([*parts, text[end:]])
