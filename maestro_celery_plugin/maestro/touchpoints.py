"""The touchpoints: the list of Maestro's names that the plugin replaces, each with the line it relies on and a check.

Maestro discovers adapters, but has no other entry points. So the plugin replaces a few names in Maestro's modules after
their import. It neither edits nor copies Maestro's code.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import EnsembleError, UnsupportedMaestroError
from maestro_celery_plugin.maestro import old_pickles
from maestro_celery_plugin.maestro.launch_options import OPTIONS, check_output

__all__ = ["TOUCHPOINTS", "Touchpoint", "install"]


@dataclasses.dataclass(frozen=True)
class Touchpoint:
    """One name in Maestro that the plugin replaces.

    Attributes:
        module: The module.
        name: The name in it.
        relies_on: The line of maestrowf 1.2 that uses the name.
        replace: Returns the replacement of the original object.
    """

    module: str
    name: str
    relies_on: str
    replace: Callable[[Any], Any]

    def apply(self, module: ModuleType) -> None:
        """Replace the name in the module.

        Raises:
            UnsupportedMaestroError: the module does not have the name.
        """
        self.check(module)
        setattr(module, self.name, self.replace(getattr(module, self.name)))

    def check(self, module: ModuleType) -> None:
        """Check that the module has the name.

        Raises:
            UnsupportedMaestroError: the module does not have the name.
        """
        if not hasattr(module, self.name):
            raise UnsupportedMaestroError(
                f"maestro-celery-plugin does not support this version of maestrowf: {self.module} has no "
                f"'{self.name}' ({self.relies_on}). Install 'maestrowf>=1.2,<1.3', or uninstall "
                "maestro-celery-plugin."
            )


def _specification(original: Any) -> Any:
    from maestro_celery_plugin.maestro.specification import Specification

    return Specification


def _argument_parser(original: type[argparse.ArgumentParser]) -> type[argparse.ArgumentParser]:
    return EnsembleArgumentParser


def _start_process(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start_process(cmd: Any, *args: Any, **kwargs: Any) -> Any:
        return original(_with_own_conductor(cmd), *args, **kwargs)

    return start_process


def _shutil(original: ModuleType) -> ModuleType:
    """Return a module like `shutil` whose `rmtree` first ends the study in the directory that it removes."""
    module = ModuleType(original.__name__, original.__doc__)
    module.__dict__.update(vars(original))
    module.rmtree = functools.partial(_end_and_remove, original.rmtree)  # type: ignore[attr-defined]
    return module


def _sleep(original: Callable[[float], None]) -> Callable[[float], None]:
    return _wait


TOUCHPOINTS = (
    Touchpoint(
        "maestrowf.specification",
        "YAMLSpecification",
        "maestro.py:42 imports it, maestro.py:371 loads the specification with it",
        _specification,
    ),
    Touchpoint(
        "maestrowf.maestro",
        "ArgumentParser",
        "maestro.py:32 imports it, setup_argparser builds the command line with it",
        _argument_parser,
    ),
    Touchpoint(
        "maestrowf.maestro",
        "start_process",
        "maestro.py:528 starts 'nohup conductor ...' with it",
        _start_process,
    ),
    Touchpoint(
        "maestrowf.maestro",
        "shutil",
        "maestro.py:395 removes the directory of an earlier study with it, after the consent of the user",
        _shutil,
    ),
    Touchpoint("maestrowf.conductor", "sleep", "conductor.py:425 waits for the next poll with it", _sleep),
)


# --- the replacements --------------------------------------------------------------------------------


class EnsembleArgumentParser(argparse.ArgumentParser):
    """Maestro's parser, with the plugin's options and its part of `maestro run` and `maestro cancel`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _apply_unbound()
        if self.prog.endswith("maestro run"):
            self.add_argument(
                "--broker",
                metavar="URL",
                help="Broker of an ensemble study: a Redis or RabbitMQ URL. [Default: a private broker]",
            )
            self.add_argument(
                "--broker-host",
                metavar="ADDRESS",
                help="Address of this machine at which compute nodes reach the private broker. [Default: the loopback "
                "address for local workers, else the address of the host name]",
            )

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command line, and add the plugin's part to the command."""
        namespace = super().parse_args(*args, **kwargs)
        if getattr(namespace, "subparser", None) == "run":
            namespace.func = functools.partial(_guarded_run, namespace.func)
        elif getattr(namespace, "subparser", None) == "cancel":
            namespace.func = functools.partial(_guarded_cancel, namespace.func)
        return namespace


def _guarded_run(run: Callable[[Any], int], namespace: argparse.Namespace) -> int:
    """Run `maestro run`; print only the message of an error of the plugin."""
    OPTIONS.launching, OPTIONS.broker, OPTIONS.dry_run = True, namespace.broker, namespace.dry
    OPTIONS.broker_host = namespace.broker_host
    OPTIONS.parameter_generator = namespace.pgen is not None
    try:
        check_output(namespace.out)
        return run(namespace)
    except EnsembleError as error:
        print(f"maestro: error: {error}", file=sys.stderr)
        return 1


def _guarded_cancel(cancel: Callable[[Any], int], namespace: argparse.Namespace) -> int:
    """Run `maestro cancel`, which writes a request to the conductor; then cancel the studies without a conductor."""
    ensembles = [Path(one).absolute() for one in namespace.directory if Path(one, "merlin_info").is_dir()]
    if not ensembles:
        return cancel(namespace)
    from maestro_celery_plugin.maestro.cancel import cancel_all

    return cancel_all(functools.partial(cancel, namespace), ensembles)


def _end_and_remove(remove: Callable[..., None], path: Any, *args: Any, **kwargs: Any) -> None:
    """End the ensemble study in a directory, then remove the directory; a directory without one is only removed."""
    if Path(path, "merlin_info").is_dir():
        from maestro_celery_plugin.maestro.earlier_study import end_earlier_study

        end_earlier_study(Path(path).absolute())
    remove(path, *args, **kwargs)


def _with_own_conductor(command: Any) -> Any:
    """Return the command with the conductor of the same environment as `maestro`, which may not be on PATH."""
    conductor = Path(sys.argv[0]).with_name("conductor")
    prefix = "nohup conductor "
    if isinstance(command, str) and command.startswith(prefix) and conductor.is_file():
        return f"nohup {shlex.quote(str(conductor.absolute()))} {command[len(prefix) :]}"
    return command


def _wait(seconds: float) -> None:
    """Wait until the next poll, and watch the ensembles of this process meanwhile.

    If a step has ended in the conductor itself, do not wait: other steps may depend on it. A conductor without an
    ensemble has not imported the modules, and does not need them.
    """
    lock = sys.modules.get("maestro_celery_plugin.study.conductor_lock")
    if lock and lock.take_poll_request():
        return
    module = sys.modules.get("maestro_celery_plugin.conductor.coordinator")
    coordinators = module.active() if module else []
    if not coordinators:
        clock.sleep(seconds)
    for coordinator in coordinators:
        coordinator.wait(seconds / len(coordinators))


# --- the installation --------------------------------------------------------------------------------


_UNBOUND: list[tuple[Touchpoint, ModuleType]] = []
_SPECIFICATION = "maestro_celery_plugin.maestro.specification"


def install() -> None:
    """Apply each touchpoint, now or after the import of its module; the entry module calls this function.

    At this time, `maestrowf.maestro` and `maestrowf.conductor` are partially imported. Names that they have not defined
    yet are replaced when Maestro builds its command line.
    """
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    old_pickles.install()
    later: dict[str, list[Touchpoint]] = {}
    for touchpoint in TOUCHPOINTS:
        module = _loaded(touchpoint.module)
        if module is None:
            later.setdefault(touchpoint.module, []).append(touchpoint)
        elif hasattr(module, touchpoint.name):
            touchpoint.apply(module)
        else:
            _UNBOUND.append((touchpoint, module))
    sys.meta_path.insert(0, _AfterImport(later))


def _apply_unbound() -> None:
    while _UNBOUND:
        _apply_or_exit(*_UNBOUND.pop())


def _loaded(name: str) -> ModuleType | None:
    """Return a module that is imported at least partially, or that runs as a script; None otherwise."""
    main = sys.modules.get("__main__")
    if main is not None and getattr(main.__spec__, "name", None) == name:
        return main
    return sys.modules.get(name)


def _apply_or_exit(touchpoint: Touchpoint, module: ModuleType) -> None:
    """Apply a touchpoint; exit if this Maestro is not supported, because a study must not run without its ensemble."""
    try:
        touchpoint.apply(module)
    except UnsupportedMaestroError as error:
        sys.exit(f"error: {error}")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds modules with the other finders, and applies touchpoints after the execution of a module."""

    def __init__(self, touchpoints: dict[str, list[Touchpoint]]) -> None:
        self._touchpoints = touchpoints

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module with touchpoints, with a loader that applies them; None for other modules."""
        touchpoints = self._touchpoints.pop(fullname, None)
        if touchpoints is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _TouchpointLoader(spec.loader, touchpoints)
        return spec


class _TouchpointLoader(importlib.abc.Loader):
    """Executes a module with its own loader, then applies touchpoints."""

    def __init__(self, loader: importlib.abc.Loader, touchpoints: list[Touchpoint]) -> None:
        self._loader, self._touchpoints = loader, touchpoints

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create the module with its own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then apply its touchpoints."""
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        for touchpoint in self._touchpoints:
            if touchpoint.name == "YAMLSpecification" and _SPECIFICATION in sys.modules:
                # The plugin's specification imports Maestro's, and is not complete yet. Maestro needs the replacement
                # when it builds its command line; another process does not need it.
                _UNBOUND.append((touchpoint, module))
            else:
                _apply_or_exit(touchpoint, module)
