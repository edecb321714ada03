"""The command line of Merlin: the commands and options of Merlin 1.13.0 and 2.0.0b4 that the small `merlin` takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import NoReturn

__all__ = ["ABOUT", "options_without_effect", "parser"]

ABOUT = (
    "Merlin is not installed here. This command of maestro-celery-plugin starts and controls studies with Maestro "
    "instead. For `import merlin`, for example merlin.common.util_sampling, and for the other commands, install Merlin "
    "into the environment of the samples: pip install merlin."
)
# Why an option has no effect, by its name in Merlin; `None` means that the value of the option is the usual one.
_WITHOUT_EFFECT: Mapping[str, Mapping[str, str]] = {
    "run-workers": {
        "worker_args": "the specification has the arguments of workers",
        "disable_logs": "each worker has a log in merlin_info/workers",
    },
    "query-workers": {"local_db": "workers are found by their heartbeats in the study"},
    "status": {"cb_help": "no colours need a legend", "no_prompts": "the command asks nothing"},
    "detailed-status": {
        "no_prompts": "the command asks nothing",
        "disable_pager": "there is no pager",
        "disable_theme": "colours are for terminals only",
        "layout": "there is one layout",
        "steps": "the command shows all steps",
        "task_queues": "the command shows all task queues",
        "workers": "the command shows all workers",
    },
    "monitor": {
        "steps": "the command waits for the whole study",
        "no_restart": "the command restarts nothing",
        "disable_gc": "there is no database",
    },
    "cancel": {"no_mark_cancelled": "nothing is marked in a database"},
}
_RETURN_CODES = ["SUCCESS", "SOFT_FAIL", "HARD_FAIL", "STOP_WORKERS", "RESTART", "RETRY", "DRY_SUCCESS", "UNRECOGNIZED"]
_STATES = ["INITIALIZED", "RUNNING", "FINISHED", "FAILED", "CANCELLED", "DRY_RUN", "UNKNOWN"]


def options_without_effect(options: argparse.Namespace) -> list[str]:
    """Return a line for each option of the command line that has no effect here."""
    command = str(options.command)
    lines = []
    for name, why in _WITHOUT_EFFECT.get(command, {}).items():
        value = getattr(options, name)
        if value and value != ["all"]:
            lines.append(f"merlin {command}: --{name.replace('_', '-')} has no effect: {why}.")
    return lines


class _Parser(argparse.ArgumentParser):
    """A parser that says for what Merlin itself is needed."""

    def error(self, message: str) -> NoReturn:
        """Exit with a message."""
        super().error(f"{message}\n{ABOUT}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of `merlin`."""
    merlin = _Parser(prog="merlin", description=ABOUT)
    release = f"maestro-celery-plugin {version('maestro-celery-plugin')}"
    merlin.add_argument("-v", "--version", action="version", version=release)
    merlin.add_argument("-lvl", "--level", default="INFO", help=argparse.SUPPRESS)
    commands = merlin.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_launch_commands(commands)
    _add_control_commands(commands)
    _add_status_commands(commands)
    commands.add_parser("info", help="check the installation: maestro-celery doctor")
    database = commands.add_parser("database", aliases=["db"], help="does nothing: a study has its own states")
    database.add_argument("arguments", nargs=argparse.REMAINDER)
    return merlin


def _add_launch_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add the commands that start studies and workers."""
    run = commands.add_parser("run", help="start a study: maestro run -y", epilog=ABOUT)
    run.add_argument("specification")
    _add_variables(run)
    run.add_argument("--samplesfile")
    run.add_argument("--pgen")
    run.add_argument("--pargs", nargs="+", action="extend", default=[])
    _add_flags(run, "--dry", "--no-errors", "--local")
    restart = commands.add_parser("restart", help="continue a study: maestro-celery resume")
    restart.add_argument("restart_dir")
    _add_flags(restart, "--local")
    workers = commands.add_parser("run-workers", help="does nothing: the conductor starts workers")
    workers.add_argument("study", metavar="specification")
    workers.add_argument("--worker-args", default="")
    _add_steps(workers)
    _add_variables(workers)
    _add_flags(workers, "--echo", "--disable-logs")


def _add_control_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add the commands that stop and list workers, and take samples back."""
    purge = commands.add_parser("purge", help="take waiting samples back: maestro-celery purge")
    purge.add_argument("study", metavar="specification")
    purge.add_argument("-f", "--force", action="store_true")
    _add_steps(purge)
    _add_variables(purge)
    for name in ("stop-workers", "query-workers"):
        workers = commands.add_parser(name, help="of this study, or of a specification")
        workers.add_argument("--spec", dest="study")
        workers.add_argument("--queues", nargs="+", default=[])
        workers.add_argument("--workers", nargs="+", default=[])
        workers.set_defaults(vars=[])
        _add_server(workers)
        if name == "query-workers":
            workers.add_argument("-f", "--format", choices=["rich", "json"], default="rich")
            workers.add_argument("-l", "--local-db", action="store_true")
    cancel = commands.add_parser("cancel", help="end a study: maestro cancel")
    cancel.add_argument("study", metavar="specification", nargs="?")
    _add_flags(cancel, "--no-purge", "--no-stop-workers", "--no-mark-cancelled")
    _add_variables(cancel)


def _add_status_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add the commands that show a study."""
    for name in ("status", "detailed-status", "monitor"):
        of_study = commands.add_parser(name, help=f"of this study, or of another: maestro-celery {name.split('-')[-1]}")
        of_study.add_argument("study", nargs="?")
        _add_variables(of_study)
        _add_server(of_study)
        if name == "monitor":
            of_study.add_argument("--sleep", type=int, default=60)
            _add_steps(of_study)
            of_study.add_argument("-n", "--no-restart", action="store_true")
            _add_flags(of_study, "--disable-gc")
            continue
        of_study.add_argument("-o", "--output-path")
        of_study.add_argument("--dump")
        _add_flags(of_study, "--no-prompts")
        if name == "status":
            _add_flags(of_study, "--cb-help")
    _add_filters(of_study=commands.choices["detailed-status"])
    queues = commands.add_parser("queue-info", help="of this study, or of a specification: maestro-celery queues")
    queues.add_argument("--spec", dest="study")
    queues.add_argument("--dump")
    queues.add_argument("--specific-queues", nargs="+", default=[])
    _add_steps(queues)
    _add_variables(queues)
    _add_server(queues)


def _add_filters(of_study: argparse.ArgumentParser) -> None:
    """Add the options of `detailed-status`."""
    of_study.add_argument("--max-tasks", type=int)
    of_study.add_argument("--return-code", nargs="+", type=str.upper, choices=_RETURN_CODES, default=[])
    of_study.add_argument("--task-status", nargs="+", type=str.upper, choices=_STATES, default=[])
    of_study.add_argument("--task-queues", nargs="+", default=[])
    of_study.add_argument("--workers", nargs="+", default=[])
    of_study.add_argument("--layout", choices=["table", "default"])
    _add_steps(of_study)
    _add_flags(of_study, "--disable-pager", "--disable-theme")


def _add_variables(command: argparse.ArgumentParser) -> None:
    command.add_argument("--vars", nargs="+", default=[], metavar="NAME=VALUE")


def _add_steps(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", nargs="+", default=["all"])


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument("--task_server", default="celery", choices=["celery"], help=argparse.SUPPRESS)


def _add_flags(command: argparse.ArgumentParser, *flags: Iterable[str]) -> None:
    for flag in flags:
        command.add_argument(str(flag), action="store_true")
