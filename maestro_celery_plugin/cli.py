"""The command line: `maestro-celery`."""

from __future__ import annotations

import click

__all__ = ["main"]


@click.group()
def main() -> None:
    """Look after ensemble studies of Maestro."""
