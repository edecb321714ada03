"""The command `merlin` of samples: it does with this plugin what the same words do with Merlin.

    merlin run|restart|stop-workers|purge|... [ARGUMENTS]

The script in the session (`study/sample_commands.py`) adds the directory of the study whose sample calls it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from maestro_celery_plugin.cli import main as maestro_celery
from maestro_celery_plugin.cli.merlin_arguments import options_without_effect, parser
from maestro_celery_plugin.cli.merlin_dump import check_dump, dump_queues, dump_status
from maestro_celery_plugin.cli.study_argument import study_of
from maestro_celery_plugin.config.groups import serving_groups
from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["main", "translated"]

_NOTHING_TO_START = "merlin run-workers: there is nothing to do: the conductor of a study starts its workers."
_NO_DATABASE = (
    "merlin database: there is nothing to do: the directory of a study has its states, and `maestro-celery status "
    "--json` prints them."
)
_FAILURES = {"FAILED", "SOFT_FAIL", "HARD_FAIL"}


def main() -> None:
    """Run the command of Merlin that the arguments name."""
    root, *words = sys.argv[1:]
    try:
        command = translated(words, Path(root))
    except (EnsembleError, OSError) as error:
        sys.exit(f"merlin: error: {error}")
    if not command:
        return
    if command[0] == "maestro":
        own = Path(sys.executable).with_name("maestro")
        maestro = str(own) if own.is_file() else shutil.which("maestro") or "maestro"
        os.execvp(maestro, [maestro, *command[1:]])  # noqa: S606 (no shell, on purpose)
    print(f"merlin: {' '.join(command)}", file=sys.stderr, flush=True)
    maestro_celery(command[1:], prog_name="maestro-celery")


def translated(words: list[str], root: Path) -> list[str]:
    """Return the command of Maestro or of this plugin for a command of Merlin; empty if nothing is left to do.

    Options without effect have a line on stderr. A dump is written here.

    Args:
        words: The arguments of `merlin`.
        root: Directory of the study whose sample calls the command.

    Raises:
        StudyError: the study of a specification is not running.
        OSError: a dump cannot be written.
        SystemExit: the arguments are wrong.
    """
    options = parser().parse_args(words)
    for line in options_without_effect(options):
        print(line, file=sys.stderr)
    if options.command in ("database", "db"):
        print(_NO_DATABASE, file=sys.stderr)
        return []
    if options.command == "info":
        return ["maestro-celery", "doctor"]
    return _COMMANDS[options.command](options, root)


def _is_own(options: argparse.Namespace, root: Path) -> bool:
    """Tell whether a command is for the study whose sample calls it: it has its specification, or none."""
    if not options.study:
        return True
    plan = StudyPlan.read(root)
    values = dict(word.partition("=")[::2] for word in options.vars)
    return plan.is_of(Path(options.study)) and values.items() <= dict(plan.overrides.variables).items()


def _study(options: argparse.Namespace, root: Path, *, may_have_ended: bool = False) -> Path:
    """Return the directory of the study that a command is for.

    Raises:
        StudyError: there is no such study.
    """
    if _is_own(options, root):
        return root
    place = getattr(options, "output_path", None)
    places = [Path(place)] if place else []
    return study_of(Path(options.study), options.vars, may_have_ended=may_have_ended, places=places)


def _run(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that launches a study."""
    flags = {"--dry": options.dry, "--no-errors": options.no_errors, "-fg": options.local}
    values = _repeated("--vars", options.vars)
    values += ["--samplesfile", options.samplesfile] if options.samplesfile else []
    values += ["--pgen", options.pgen] if options.pgen else []
    values += _repeated("--pargs", options.pargs)
    return ["maestro", "run", "-y", *(flag for flag, is_set in flags.items() if is_set), options.specification, *values]


def _restart(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that continues a study; Merlin runs failed samples again as well."""
    return ["maestro-celery", "resume", "--failed", *(["-fg"] if options.local else []), options.restart_dir]


def _run_workers(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that prints the command lines of workers; without `--echo`, there is nothing to do."""
    if not options.echo:
        print(_NOTHING_TO_START)
        return []
    study = _study(options, root)
    chosen = [] if options.steps == ["all"] else _groups(study, _queues_of(study, options.steps))
    return ["maestro-celery", "workers", "--echo", *_repeated("--group", chosen), str(study)]


def _purge(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that takes waiting samples back."""
    flags = ["-f"] if options.force else []
    steps = _repeated("--step", [step for step in options.steps if step != "all"])
    study = [str(root)] if _is_own(options, root) else [*_repeated("--vars", options.vars), options.study]
    return ["maestro-celery", "purge", *flags, *steps, *study]


def _workers(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that stops or lists the workers of the groups with these names or task queues."""
    study = _study(options, root)
    try:
        words = [re.compile(word) for word in options.workers]
    except re.error as error:
        sys.exit(f"merlin: error: --workers: '{error.pattern!s}' is no regular expression ({error}); correct it.")
    groups = serving_groups(StudyPlan.read(study).settings)
    of_queues = _groups(study, options.queues)
    chosen = [name for name in groups if name in of_queues or any(word.search(name) for word in words)]
    if (options.queues or options.workers) and not chosen:
        sys.exit(f"merlin: error: the study has no such workers; its worker groups are {', '.join(groups)}.")
    command = ["stop-workers", "-f"]
    if options.command == "query-workers":
        command = ["workers", "--list", *(["--json"] if options.format == "json" else [])]
    return ["maestro-celery", *command, *_repeated("--group", chosen), str(study)]


def _cancel(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that cancels a study, or the part of it that is wanted."""
    study = str(_study(options, root))
    if options.no_purge and options.no_stop_workers:
        return []
    if options.no_purge:
        return ["maestro-celery", "stop-workers", "-f", study]
    return ["maestro-celery", "purge", "-f", study] if options.no_stop_workers else ["maestro", "cancel", "-y", study]


def _queues(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that shows task queues, or write them to a file."""
    study = _study(options, root)
    names = [] if options.steps == ["all"] else _queues_of(study, options.steps)
    names += options.specific_queues
    if options.dump:
        dump_queues(study, names, check_dump(options.dump))
        return []
    return ["maestro-celery", "queues", *_repeated("--queue", names), str(study)]


def _monitor(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that waits for the end of a study."""
    return ["maestro-celery", "monitor", "--sleep", str(options.sleep), str(_study(options, root, may_have_ended=True))]


def _status(options: argparse.Namespace, root: Path) -> list[str]:
    """Return the command that shows the status, or write it to a file."""
    study = str(_study(options, root, may_have_ended=True))
    if options.dump:
        dump_status(Path(study), check_dump(options.dump))
        return []
    if options.command == "status":
        return ["maestro-celery", "status", study]
    if not _FAILURES.isdisjoint([*options.task_status, *options.return_code]):
        limit = ["--limit", str(options.max_tasks)] if options.max_tasks else []
        return ["maestro-celery", "status", "--failed", *limit, study]
    given = {"task-status": options.task_status, "return-code": options.return_code, "max-tasks": options.max_tasks}
    for name in (name for name, value in given.items() if value):
        print(f"merlin detailed-status: --{name} has an effect for failed samples only.", file=sys.stderr)
    return ["maestro-celery", "status", study]


def _queues_of(study: Path, steps: Iterable[str]) -> list[str]:
    """Return the task queues of steps.

    Raises:
        SystemExit: there is no such step.
    """
    facts = StudyPlan.read(study).settings.steps
    unknown = [step for step in steps if step not in facts]
    if unknown:
        sys.exit(f"merlin: error: --steps: the study has no step '{unknown[0]}'; its steps are {', '.join(facts)}.")
    return list(dict.fromkeys(queue for step in steps for queue in facts[step].queues))


def _groups(study: Path, queues: Iterable[str]) -> list[str]:
    """Return the worker groups that serve one of these task queues."""
    groups, names = serving_groups(StudyPlan.read(study).settings), set(queues)
    return [name for name, group in groups.items() if names & set(group.task_queues)]


def _repeated(option: str, values: Iterable[str]) -> list[str]:
    """Return the words of an option that may be repeated."""
    return [word for value in values for word in (option, value)]


_COMMANDS: Mapping[str, Callable[[argparse.Namespace, Path], list[str]]] = {
    "run": _run,
    "restart": _restart,
    "run-workers": _run_workers,
    "purge": _purge,
    "stop-workers": _workers,
    "query-workers": _workers,
    "cancel": _cancel,
    "queue-info": _queues,
    "monitor": _monitor,
    "status": _status,
    "detailed-status": _status,
}
