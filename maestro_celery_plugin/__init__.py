"""Ensembles of samples for Maestro studies, distributed by Celery."""

__all__ = ["__version__"]

__version__ = "0.1.0"
