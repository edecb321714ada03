"""The one module that Maestro discovers: it is installed into ``maestrowf/interfaces/script``.

Maestro executes it anew whenever it looks for adapters (``load_module`` in
``maestrowf/interfaces/__init__.py``), so it only imports; what it imports is executed once.
"""

from maestro_celery_plugin import maestro_hooks
from maestro_celery_plugin.adapter import CeleryScriptAdapter

__all__ = ["CeleryScriptAdapter"]

maestro_hooks.install()
