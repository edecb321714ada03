"""Maestro's command line with the plugin's options, and the plugin's part of `maestro run` and `maestro cancel`."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maestro_celery_plugin.maestro.after_import import apply_deferred
from maestro_celery_plugin.maestro.this_process import collect_garbage_again, coordinators_here, is_ensemble
from maestro_celery_plugin.spec.overrides import one_variable_each

__all__ = ["EnsembleArgumentParser"]

# As in `study/session.py`, whose import takes long.
SESSION_VARIABLE = "MAESTRO_CELERY_SESSION"


class EnsembleArgumentParser(argparse.ArgumentParser):
    """Maestro's parser, with the plugin's options and its part of `maestro run` and `maestro cancel`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        apply_deferred()
        if self.prog.endswith("maestro run"):
            self.add_argument(
                "--broker",
                metavar="URL",
                help="Broker of an ensemble study: a Redis or RabbitMQ URL, or 'private'. [Default: that of your "
                "configuration or of Merlin's app.yaml, else a private broker]",
            )
            self.add_argument(
                "--broker-host",
                metavar="ADDRESS",
                help="Address of this machine at which compute nodes reach the private broker. [Default: the loopback "
                "address for local workers, else the address of the host name]",
            )
            self.add_argument(
                "--notify",
                metavar="CMD",
                help="Command that runs at the end of an ensemble study, at its first failure, and when a further "
                "allocation is submitted, with a JSON object on its standard input; '' for none. [Default: "
                "merlin.notify, else that of your configuration]",
            )
            _add_overrides(self)
            _add_limits(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the command line, with one variable for each `--vars`."""
        words = sys.argv[1:] if args is None else list(args)
        if SESSION_VARIABLE in os.environ:
            self._inherit(words)
        return super().parse_known_args(list(one_variable_each(words)), namespace)

    def _inherit(self, words: Sequence[str]) -> None:
        """Let the options of the study whose sample runs this command be the defaults of `maestro run`."""
        if self.prog.endswith("maestro run") or (self.prog == "maestro" and "run" in words):
            from maestro_celery_plugin.maestro.joining import inherited_options

            known = {action.dest for action in self._actions}
            self.set_defaults(**{name: value for name, value in inherited_options().items() if name in known})

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command line, and add the plugin's part to the command."""
        namespace = super().parse_args(*args, **kwargs)
        if getattr(namespace, "subparser", None) == "run":
            namespace.func = functools.partial(_guarded_run, namespace.func)
        elif getattr(namespace, "subparser", None) == "cancel":
            namespace.func = functools.partial(_guarded_cancel, namespace.func)
        return namespace


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the options that set something in place of the specification."""
    parser.add_argument(
        "--vars",
        metavar="NAME=VALUE ...",
        action="append",
        default=[],
        help="Values of variables, in place of those in the specification; they apply before anything else, also in "
        "OUTPUT_PATH and in the name of the study.",
    )
    parser.add_argument(
        "--samplesfile",
        metavar="FILE",
        help="File of the samples, in place of merlin.samples.file; no command generates it.",
    )
    parser.add_argument(
        "--env-file",
        metavar="FILE",
        help="File with lines NAME=VALUE: environment variables of the study, and values of the variables in the "
        "specification that have these names.",
    )
    parser.add_argument(
        "--no-errors",
        action="store_true",
        help="With --dry, and without the batch system: write the scripts of native steps without its directives.",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options for studies that start studies."""
    parser.add_argument(
        "--session",
        metavar="STUDY",
        help="Directory of a study that runs: join its session, with its broker, and its workers where they fit. "
        "[Default: the session of the sample or step that types the command, else a new one]",
    )
    parser.add_argument("--quiet", action="store_true", help="Print nothing except warnings and errors.")
    parser.add_argument(
        "--max-depth",
        metavar="N",
        type=int,
        help="Number of studies that may start each other in a chain below this one. [Default: 100]",
    )
    parser.add_argument(
        "--max-studies",
        metavar="N",
        type=int,
        help="Number of studies that this one and those that it starts may be together. [Default: no limit]",
    )


def _guarded_run(run: Callable[[Any], int], arguments: argparse.Namespace) -> int:
    """Run `maestro run`, which searches for garbage again at its end."""
    from maestro_celery_plugin.maestro.guarded_run import guarded_run

    try:
        return guarded_run(run, arguments, _failed_samples)
    finally:
        collect_garbage_again()


def _failed_samples() -> int | None:
    coordinators = coordinators_here()
    return sum(coordinator.failed_samples for coordinator in coordinators) if coordinators else None


def _guarded_cancel(cancel: Callable[[Any], int], namespace: argparse.Namespace) -> int:
    """Run `maestro cancel`, which writes a request to the conductor; then cancel the studies without a conductor."""
    ensembles = [Path(one).absolute() for one in namespace.directory if is_ensemble(Path(one))]
    if not ensembles:
        return cancel(namespace)
    from maestro_celery_plugin.maestro.cancel import cancel_all

    try:
        return cancel_all(functools.partial(cancel, namespace), ensembles)
    except EOFError:
        print("maestro: error: there is no terminal for the answer, and nothing is cancelled; add -y.", file=sys.stderr)
    except KeyboardInterrupt:
        print("maestro: interrupted; `maestro-celery status` shows what still runs.", file=sys.stderr)
    return 1
