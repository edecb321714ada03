"""`maestro-celery config`: the broker that a study would use, and the user's configuration."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import click
import yaml

from maestro_celery_plugin.broker.choice import BrokerChoice, check, check_text, choices, masked
from maestro_celery_plugin.broker.private import find_server
from maestro_celery_plugin.broker.tls import encryption_of
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.user_configuration import (
    UserConfiguration,
    batch_defaults,
    checked,
    configuration_path,
    read_configuration,
    store,
)
from maestro_celery_plugin.config.yaml_values import parsed_yaml
from maestro_celery_plugin.errors import BrokerError, EnsembleError, nearest
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.processes import forget_secret_url

__all__ = ["command"]

_BATCH = "batch."


@click.group("config", invoke_without_command=True)
@click.option("--broker", metavar="URL", help="Broker as for `maestro run`: a URL, or 'private'.")
@click.pass_context
def command(ctx: click.Context, broker: str | None) -> None:
    """Show which broker a study would use here, and why; set keys of your configuration.

    Exit code 1 if the broker cannot be used.
    """
    forget_secret_url(broker)
    if ctx.invoked_subcommand is None:
        sys.exit(_show(broker))


def _show(option: str | None) -> int:
    """Print broker and configuration; return the exit code."""
    configuration, code = read_configuration(), 0
    click.echo(f"configuration: {configuration_path()}{'' if configuration_path().exists() else ' (no file)'}")
    try:
        found = choices(option)
        used = next(found)
        click.echo(f"broker: {_shown(used)}")
        for note in used.notes:
            click.echo(f"  note: {note}")
        for other in _others(found):
            click.echo(f"  not used: {other}")
        check(used)
        click.echo(f"  it answers, {encryption_of(used.url)}" if used.url else f"  its server is {find_server()}")
    except BrokerError as error:
        click.echo(f"  error: {error}")
        code = 1
    for line in _batch_lines(configuration):
        click.echo(line)
    click.echo(f"notify: {configuration.notify or 'nothing'}")
    return code


def _others(found: Iterator[BrokerChoice]) -> Iterator[str]:
    """Yield the brokers that another one has priority over; a mistake among them has no effect."""
    try:
        for choice in found:
            yield _shown(choice)
    except BrokerError as error:
        yield str(error)


def _shown(choice: BrokerChoice) -> str:
    if choice.url is None:
        return "private" if choice.source == "private broker" else f"private, from {choice.source}"
    return f"{masked(choice.url)}, from {choice.source}"


def _batch_lines(configuration: UserConfiguration) -> Iterator[str]:
    defaults = batch_defaults(configuration, host_name())
    yield f"batch: {_inline(defaults) if defaults else 'nothing'}, on this machine ({host_name()})"
    for pattern, block in configuration.batch.items():
        yield f"  on '{pattern}': {_inline(block)}"


def _inline(block: Any) -> str:
    return yaml.safe_dump(block, default_flow_style=True, sort_keys=False, width=10_000).strip()


@command.command("set")
@click.argument("key")
@click.argument("value", required=False)
def set_key(key: str, value: str | None) -> None:
    """Set KEY to VALUE: `broker`, `notify`, or `batch.PATTERN.KEY`, such as 'batch.quartz*.bank'.

    Without VALUE, it is read from the terminal or the standard input, so that the process list never shows a password.
    """
    if value is None:
        hidden = sys.stdin.isatty()
        value = click.prompt(key, hide_input=True) if hidden else sys.stdin.readline().rstrip("\n")
    forget_secret_url(value)
    data = conversion.to_dict(read_configuration())
    block, name = _place(data, key)
    block[name] = _value(value) if key.startswith(_BATCH) else value
    configuration = checked(data, "config set", hint="nothing is stored")
    if key == "broker":
        _check_url(configuration)
    store(configuration)
    click.echo(f"{key} is set in {configuration_path()}.")


def _place(data: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the block of a key, which is created, and the name of the key there.

    Raises:
        UsageError: there is no such key.
    """
    if key in ("broker", "notify"):
        return data, key
    pattern, _, name = key.removeprefix(_BATCH).rpartition(".")
    if not key.startswith(_BATCH) or not pattern:
        keys = ("broker", "notify", "batch.PATTERN.KEY")
        raise click.UsageError(f"There is no key '{key}'; {nearest(key, keys)}")
    return data.setdefault("batch", {}).setdefault(pattern, {}), name


def _value(text: str) -> Any:
    """Return a value of `batch` as YAML reads it, such as a number of nodes; text that is no scalar stays as it is."""
    try:
        value = parsed_yaml(text)
    except yaml.YAMLError:
        return text
    return text if ":" in text and isinstance(value, int) else value  # a walltime, which YAML reads base 60


def _check_url(configuration: UserConfiguration) -> None:
    """Check the broker of a new configuration, and warn if it cannot be used now: it may be away for a while.

    Raises:
        BrokerError: the text is no URL of a broker.
    """
    choice = dataclasses.replace(next(choices(configuration.broker)), source="config set")
    check_text(choice)
    try:
        check(choice)
    except BrokerError as error:
        click.echo(f"maestro-celery: warning: {error}", err=True)


@command.command("unset")
@click.argument("key")
def unset_key(key: str) -> None:
    """Remove KEY: `broker`, `notify`, `batch.PATTERN` or `batch.PATTERN.KEY`."""
    data = conversion.to_dict(read_configuration())
    blocks = data.get("batch", {})
    if key.removeprefix(_BATCH) in blocks and key.startswith(_BATCH):
        del blocks[key.removeprefix(_BATCH)]
    else:
        block, name = _place(data, key)
        if name not in block:
            raise EnsembleError(f"{configuration_path()}: '{key}' is not set.")
        del block[name]
    data["batch"] = {pattern: block for pattern, block in blocks.items() if block}
    store(checked(data, configuration_path()))
    click.echo(f"{key} is no longer set in {configuration_path()}.")


@command.command("path")
def path() -> None:
    """Print the path of your configuration, which need not exist."""
    click.echo(configuration_path())
