"""The option `--stalled-after` of the commands that wait for studies."""

from __future__ import annotations

import click

__all__ = ["stalled_option"]

stalled_option = click.option(
    "--stalled-after",
    default=600.0,
    type=click.FloatRange(min=0),
    help="Seconds without a worker and without an open allocation after which a study counts as stalled. "
    "[default: 600]",
)
