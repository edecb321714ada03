"""What importing a module imports: `maestro status` waits for no Celery, and the core knows nothing of it."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import maestro_celery_plugin

PACKAGE = Path(maestro_celery_plugin.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "entry" not in path.parts
}
# The rooms that may import Celery or kombu, and the one module outside of them that asks Celery's own parser.
CELERY_ROOMS = ("broker", "worker")
CELERY_PARSER = "spec.worker_args"
# Importing these brings no Celery, so that `maestro status` and `maestro-celery status` answer at once.
LIGHT_ROOMS = ("config", "batch", "samples", "spec", "ledger", "study", "report")
LIGHT = ("maestro.hooks", "maestro.specification", "maestro.adapter")


def packages_in(path: Path) -> set[str]:
    """Return the packages that a module imports, be it inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(CELERY_ROOMS)])
def test_celery_is_imported_by_two_rooms_only(name):
    if name != CELERY_PARSER:
        assert not packages_in(MODULES[name]) & {"celery", "kombu"}


def test_importing_the_others_imports_no_celery():
    """One after the other in one process: the first that brings Celery, kombu or redis is named."""
    names = [name for name in MODULES if name.partition(".")[0] in LIGHT_ROOMS]
    program = f"""
        import importlib, sys, warnings
        warnings.simplefilter("ignore")
        for name in {[*names, *LIGHT]!r}:
            importlib.import_module(f"maestro_celery_plugin.{{name}}")
            for heavy in ("celery", "kombu", "redis"):
                assert heavy not in sys.modules, f"{{name}} imports {{heavy}}"
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
