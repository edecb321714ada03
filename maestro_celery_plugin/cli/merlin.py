"""The command `merlin` of samples: it does with this plugin what the same words do with Merlin.

    merlin run|restart|stop-workers|purge|... [ARGUMENTS]

The script in the session (`study/merlin_command.py`) adds the directory of the study whose sample calls it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from maestro_celery_plugin.cli import main as maestro_celery
from maestro_celery_plugin.cli.workers import study_of
from maestro_celery_plugin.config.groups import serving_groups
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["main", "translated"]

_ABOUT = (
    "Merlin is not installed here. This command of maestro-celery-plugin starts and controls studies with Maestro "
    "instead. For `import merlin`, for example merlin.common.util_sampling, and for the other commands, install Merlin "
    "into the environment of the samples: pip install merlin."
)
_NOTHING_TO_START = "merlin run-workers: there is nothing to do: the conductor of a study starts its workers."


class _Parser(argparse.ArgumentParser):
    """A parser that says for what Merlin itself is needed."""

    def error(self, message: str) -> NoReturn:
        """Exit with a message."""
        super().error(f"{message}\n{_ABOUT}")


def main() -> None:
    """Run the command of Merlin that the arguments name."""
    root, *words = sys.argv[1:]
    try:
        command = translated(words, Path(root))
    except EnsembleError as error:
        sys.exit(f"merlin: error: {error}")
    if not command:
        print(_NOTHING_TO_START)
    elif command[0] == "maestro":
        own = Path(sys.executable).with_name("maestro")
        maestro = str(own) if own.is_file() else shutil.which("maestro") or "maestro"
        os.execvp(maestro, [maestro, *command[1:]])  # noqa: S606 (no shell, on purpose)
    else:
        print(f"merlin: {' '.join(command)}", file=sys.stderr, flush=True)
        maestro_celery(command[1:], prog_name="maestro-celery")


def translated(words: list[str], root: Path) -> list[str]:
    """Return the command of Maestro or of this plugin for a command of Merlin; empty if there is nothing to do.

    Args:
        words: The arguments of `merlin`.
        root: Directory of the study whose sample calls the command.

    Raises:
        StudyError: the study of a specification is not running.
        SystemExit: the arguments are wrong.
    """
    options = _parser().parse_args(words)
    command = str(options.command)
    if command == "run":
        return _run(options)
    if command == "run-workers":
        return []
    if command == "info":
        return ["maestro-celery", "doctor"]
    if command == "restart":
        foreground = ["-fg"] if options.local else []
        return ["maestro-celery", "resume", "--failed", *foreground, options.restart_dir]  # Merlin runs them again
    if command == "purge":
        steps = _repeated("--step", [step for step in options.steps if step != "all"])
        flags = ["-f"] if options.force else []
        return ["maestro-celery", "purge", *flags, *steps, *_repeated("--vars", options.vars), options.specification]
    if command in ("stop-workers", "query-workers"):
        return _workers(options, root)
    study = str(study_of(Path(options.study), options.vars, may_have_ended=True) if options.study else root)
    if command == "cancel":
        return ["maestro", "cancel", "-y", study]
    if command == "monitor":
        return ["maestro-celery", "monitor", "--sleep", str(options.sleep), study]
    name = {"queue-info": "queues", "status": "status", "detailed-status": "status"}[command]
    return ["maestro-celery", name, study]


def _run(options: argparse.Namespace) -> list[str]:
    """Return the command that launches a study."""
    flags = {"--dry": options.dry, "--no-errors": options.no_errors, "-fg": options.local}
    values = _repeated("--vars", options.vars)
    values += ["--samplesfile", options.samplesfile] if options.samplesfile else []
    values += ["--pgen", options.pgen] if options.pgen else []
    values += _repeated("--pargs", options.pargs)
    return ["maestro", "run", "-y", *(flag for flag, is_set in flags.items() if is_set), options.specification, *values]


def _workers(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that stops or lists the workers of the groups with these names or task queues."""
    study = study_of(Path(options.spec)) if options.spec else root
    groups = serving_groups(StudyPlan.read(study).settings)
    try:
        words = [re.compile(word) for word in options.workers]
    except re.error as error:
        sys.exit(f"merlin: error: --workers: '{error.pattern!s}' is no regular expression ({error}); correct it.")
    chosen = [
        name
        for name, group in groups.items()
        if set(group.task_queues) & set(options.queues) or any(word.search(name) for word in words)
    ]
    if (options.queues or options.workers) and not chosen:
        sys.exit(f"merlin: error: the study has no such workers; its worker groups are {', '.join(groups)}.")
    command = ["stop-workers", "-f"] if options.command == "stop-workers" else ["workers", "--list"]
    return ["maestro-celery", *command, *_repeated("--group", chosen), str(study)]


def _repeated(option: str, values: Iterable[str]) -> list[str]:
    """Return the words of an option that may be repeated."""
    return [word for value in values for word in (option, value)]


def _parser() -> _Parser:
    parser = _Parser(prog="merlin", description=_ABOUT)
    release = f"maestro-celery-plugin {version('maestro-celery-plugin')}"
    parser.add_argument("-v", "--version", action="version", version=release)
    parser.add_argument("-lvl", "--level", default="INFO", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_launch_commands(commands)
    purge = commands.add_parser("purge", help="take waiting samples back: maestro-celery purge")
    purge.add_argument("specification")
    purge.add_argument("-f", "--force", action="store_true")
    purge.add_argument("--steps", nargs="+", default=[])
    purge.add_argument("--vars", nargs="+", default=[], metavar="NAME=VALUE")
    for name in ("stop-workers", "query-workers"):
        workers = commands.add_parser(name, help="of this study, or of a specification")
        workers.add_argument("--spec")
        workers.add_argument("--queues", nargs="+", default=[])
        workers.add_argument("--workers", nargs="+", default=[])
        workers.add_argument("--task_server", default="celery", choices=["celery"], help=argparse.SUPPRESS)
    for name in ("status", "detailed-status", "monitor", "cancel"):
        words = "maestro cancel" if name == "cancel" else f"maestro-celery {name.split('-')[-1]}"
        of_study = commands.add_parser(name, help=f"of this study, or of another: {words}")
        of_study.add_argument("study", nargs="?")
        of_study.add_argument("--vars", nargs="+", default=[], metavar="NAME=VALUE")
        if name == "monitor":
            _add_monitor_options(of_study)
    queues = commands.add_parser("queue-info", help="of this study, or of a specification: maestro-celery queues")
    queues.add_argument("--spec", dest="study")
    queues.add_argument("--vars", nargs="+", default=[], metavar="NAME=VALUE")
    commands.add_parser("info", help="check the installation: maestro-celery doctor")
    return parser


def _add_monitor_options(monitor: argparse.ArgumentParser) -> None:
    """Add the options of `merlin monitor`; those without effect are for what a conductor does by itself."""
    monitor.add_argument("--sleep", type=int, default=60)
    monitor.add_argument("--steps", nargs="+", help=argparse.SUPPRESS)
    monitor.add_argument("--task_server", default="celery", choices=["celery"], help=argparse.SUPPRESS)
    for flags in (("-n", "--no-restart"), ("--disable-gc",)):
        monitor.add_argument(*flags, action="store_true", help=argparse.SUPPRESS)


def _add_launch_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add the commands that start studies and workers."""
    run = commands.add_parser("run", help="start a study: maestro run -y", epilog=_ABOUT)
    run.add_argument("specification")
    run.add_argument("--vars", nargs="+", default=[], metavar="NAME=VALUE")
    run.add_argument("--samplesfile")
    run.add_argument("--pgen")
    run.add_argument("--pargs", nargs="+", action="extend", default=[])
    for flag in ("--dry", "--no-errors", "--local"):
        run.add_argument(flag, action="store_true")
    restart = commands.add_parser("restart", help="continue a study: maestro-celery resume")
    restart.add_argument("restart_dir")
    restart.add_argument("--local", action="store_true")
    run_workers = commands.add_parser("run-workers", help="does nothing: the conductor starts workers")
    run_workers.add_argument("arguments", nargs=argparse.REMAINDER)
