"""The files of Merlin's option `--dump`: the status of a study, or one line for each look at its task queues."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from maestro_celery_plugin.cli import main as maestro_celery
from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.files import read_json, write_atomically
from maestro_celery_plugin.report.task_queues import task_queues
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["check_dump", "dump_queues", "dump_status"]


def check_dump(file: str) -> Path:
    """Return the path of a dump.

    Raises:
        StudyError: its name ends in neither .csv nor .json.
    """
    path = Path(file)
    if path.suffix not in (".csv", ".json"):
        raise StudyError(f"--dump: found '{file}'; the name of the file ends in '.csv' or '.json'.")
    return path


def dump_status(study: Path, file: Path) -> None:
    """Write the status: Maestro's ``status.csv``, or the output of ``maestro-celery status --json``.

    Raises:
        OSError: a file cannot be read or written.
    """
    if file.suffix == ".csv":
        shutil.copyfile(study / "status.csv", file)
        return
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        maestro_celery(["status", "--json", str(study)], prog_name="maestro-celery")
    write_atomically(file, output.getvalue())


def dump_queues(study: Path, names: list[str], file: Path) -> None:
    """Add the numbers of the task queues to a file with the keys of Merlin (celeryadapter.py, dump_celery_queue_info).

    Args:
        study: Directory of the study.
        names: Names of task queues; all when empty.
        file: The file.

    Raises:
        OSError: the file cannot be read or written.
        StudyError: the file has something else than earlier numbers.
    """
    time = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    queues = [queue for queue in task_queues(StudyPlan.read(study)) if not names or queue.name in names]
    numbers = {queue.name: {"tasks": queue.messages, "consumers": len(queue.workers)} for queue in queues}
    if file.suffix == ".json":
        earlier = _earlier(file)
        write_atomically(file, json.dumps(earlier | {time: numbers}, indent=1) + "\n")
        return
    row = {"time": time} | {f"{name}:{key}": str(n) for name, of in numbers.items() for key, n in of.items()}
    is_new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _earlier(file: Path) -> dict[str, Any]:
    """Return the numbers in a file of `dump_queues`; none if it does not exist."""
    try:
        return conversion.from_dict(dict[str, Any], read_json(file))
    except FileNotFoundError:
        return {}
    except ValueError as cause:
        raise StudyError(f"--dump: '{file}' is not a file of `--dump`; remove it, or name another one.") from cause
