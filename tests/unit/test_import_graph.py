"""The imports of each module: `maestro status` does not wait for the import of Celery."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import maestro_celery_plugin

PACKAGE = Path(maestro_celery_plugin.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if "entry" not in path.parts
]
# These packages and modules import no Celery, so that `maestro status` and `maestro-celery status` answer quickly.
LIGHT_PACKAGES = ("config", "batch", "samples", "spec", "ledger", "study", "report")
LIGHT_MODULES = ("maestro.touchpoints", "maestro.ensemble_specification", "maestro.adapter", "cli.status")


def test_importing_the_light_packages_imports_no_celery():
    """Import the modules one after another in one process; a failure names the first module that imports Celery."""
    names = [name for name in MODULES if name.partition(".")[0] in LIGHT_PACKAGES]
    program = f"""
        import importlib, sys, warnings
        warnings.simplefilter("ignore")
        for name in {[*names, *LIGHT_MODULES]!r}:
            importlib.import_module(f"maestro_celery_plugin.{{name}}")
            for heavy in ("celery", "kombu", "redis"):
                assert heavy not in sys.modules, f"{{name}} imports {{heavy}}"
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
