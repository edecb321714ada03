"""`maestro-celery schema`: the JSON schema of a specification, for editors."""

from __future__ import annotations

import json

import click

from maestro_celery_plugin.maestro.schema import specification_schema

__all__ = ["command"]


@click.command("schema")
def command() -> None:
    """Print the JSON schema of a specification, with which an editor completes and checks keys."""
    click.echo(json.dumps(specification_schema(), indent=1))
