"""The option `--vars` of commands that read a specification, as `maestro run` has read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["vars_option"]


def vars_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option to a command, which receives the texts ``NAME=VALUE``."""
    return click.option(
        "--vars",
        "variables",
        metavar="NAME=VALUE ...",
        multiple=True,
        help="Values of variables, as for `maestro run`.",
    )(command)
