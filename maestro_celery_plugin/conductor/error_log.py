"""Errors that pass: the coordinator logs them, goes on, and tries again at its next look."""

from __future__ import annotations

import logging
from collections.abc import Callable

from maestro_celery_plugin.errors import EnsembleError

__all__ = ["try_each"]

LOGGER = logging.getLogger(__name__)


def try_each(*actions: Callable[[], object]) -> None:
    """Run actions one after the other; log an error of one of them, and go on with the next."""
    for action in actions:
        try:
            action()
        except (EnsembleError, OSError) as error:
            LOGGER.error("%s", error)
        except Exception:  # an error in the plugin; it must not end the conductor
            LOGGER.exception("An error occurred in the coordinator, which continues.")
