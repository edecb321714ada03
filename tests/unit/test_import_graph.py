"""The import graph: `maestro status` waits for no Celery, and the core knows nothing of the edges."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import maestro_celery_plugin

PACKAGE = Path(maestro_celery_plugin.__file__).parent

# What each module of the core may import at its top, of ours and of others.
CORE: dict[str, set[str]] = {
    "errors": set(),
    "states": set(),
    "settings": set(),
    "sample_paths": set(),
    "processes": set(),
    "hookspecs": {"pluggy"},
    "schema": {"jsonschema", "settings"},
    "steps": {"schema", "settings"},
    "study": {"errors", "schema", "settings", "yaml"},
    "tokens": {"sample_paths", "states"},
    "walltime": set(),
    "step_needs": set(),
    "batch_systems": {"errors", "settings", "states", "step_needs"},
    "slurm": {"batch_systems", "errors", "hookspecs", "settings", "states", "step_needs", "walltime"},
    "lsf": {"batch_systems", "errors", "hookspecs", "settings", "slurm", "states", "step_needs"},
    "flux": {"batch_systems", "errors", "hookspecs", "settings", "states", "step_needs"},
    "launchers": {"batch_systems", "settings", "step_needs", "steps", "tokens", "walltime"},
    "slots": {"step_needs"},
    "manifest": {"sample_paths", "step_needs"},
    "ledger": {"errors", "numpy"},
    "progress": {"ledger", "manifest", "numpy", "states"},
    "study_status": {"progress"},
    "holdings": {"ledger", "numpy"},
    "tracker": {"ledger", "manifest", "numpy", "progress", "states"},
    "session": {"errors", "manifest"},
    "runner": {"manifest", "states", "tokens"},
    "samples": {"errors", "hookspecs", "manifest"},
    "row_index": {"errors", "numpy"},
    "text_table": {"errors", "hookspecs", "numpy", "row_index", "samples"},
    "npy_table": {"errors", "hookspecs", "numpy"},
    "plugins": {"flux", "hookspecs", "lsf", "npy_table", "pluggy", "slurm", "text_table"},
    "study_side": {"ledger", "manifest", "numpy", "progress", "runner", "samples", "study"},
    "worker_terms": {"errors", "manifest", "session"},
    "deadline": {"batch_systems", "worker_terms"},
    "heard_conductor": {"session"},
    "worker_stay": {"deadline", "heard_conductor", "session"},
    "allocations": {"batch_systems", "manifest", "states"},
    "allocation_jobs": {"batch_systems", "deadline", "errors", "processes", "settings", "states", "walltime"},
    "allocation_source": {"allocation_jobs", "allocations", "batch_systems", "errors", "states"},
    "sample_launches": {"batch_systems", "errors", "manifest", "runner"},
    "tasks": set(),
    "range_work": {
        "errors", "ledger", "manifest", "numpy", "plugins", "progress", "runner", "states", "study_side", "tasks",
    },
    "worker_side": {
        "deadline", "manifest", "range_work", "runner", "sample_launches", "study_side", "tasks",
    },
}  # fmt: skip
# Who may import Celery or kombu at all, be it inside a function.
CELERY = {
    "app", "broker", "broker_keeper", "celery_worker", "dispatch", "intake", "worker", "worker_options",
}  # fmt: skip

WITHOUT_CELERY = (
    "maestro_celery_plugin",
    *(f"maestro_celery_plugin.{name}" for name in (*CORE, "maestro_hooks", "specification", "status", "adapter")),
)


def imports(name, *, everywhere=False):
    """Return what a module imports: ours by bare name, others by their package; without the standard library."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "maestro_celery_plugin":
            found |= {f"maestro_celery_plugin.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    names = {n.removeprefix("maestro_celery_plugin.").split(".")[0] for n in found}
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_what_the_table_says(name):
    assert imports(name) == CORE[name]


def test_the_core_imports_no_edge():
    ours = {path.stem for path in PACKAGE.glob("*.py")}
    assert {name for names in CORE.values() for name in names if name in ours} <= set(CORE)


def test_celery_is_imported_by_few():
    users = {path.stem for path in PACKAGE.glob("*.py") if imports(path.stem, everywhere=True) & {"celery", "kombu"}}
    assert users <= CELERY


def test_importing_them_imports_no_celery():
    """One after the other in one process: the first that brings Celery, kombu or redis is named."""
    program = f"""
        import importlib, sys, warnings
        warnings.simplefilter("ignore")
        for name in {WITHOUT_CELERY!r}:
            importlib.import_module(name)
            for heavy in ("celery", "kombu", "redis"):
                assert heavy not in sys.modules, f"{{name}} imports {{heavy}}"
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_importing_the_package_does_nothing_else():
    assert imports("__init__") == set()
