"""The one module that Maestro discovers: it is installed into ``maestrowf/interfaces/script``.

Maestro executes it again whenever it searches for adapters (``load_module`` in
``maestrowf/interfaces/__init__.py``), so it only imports. Python executes the imported modules once.
"""

from maestro_celery_plugin.maestro import touchpoints
from maestro_celery_plugin.maestro.adapter import CeleryScriptAdapter

__all__ = ["CeleryScriptAdapter"]

touchpoints.install()
