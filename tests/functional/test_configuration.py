"""A study takes the user's configuration at its launch, and keeps it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import yaml
from support import wait_for

SPEC = """
    description: {name: sweep, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "touch began; while test ! -e $(SPECROOT)/go; do sleep 0.1; done; exit $(A)"}
    merlin:
      samples:
        generate: {cmd: "printf '0\\\\n101\\\\n' > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
      resources:
        workers:
          w: {args: --concurrency 2}
"""


def configure(environment, text: str) -> None:
    path = Path(environment["HOME"], ".config", "maestro-celery", "config.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


def test_batch_defaults_and_the_notify_command_are_those_of_the_launch(run, environment):
    """Given a conductor that is ended and a study that is resumed with another configuration, then the first one holds."""
    configure(
        environment,
        "broker: private\nbatch: {'*': {bank: physics}}\n"
        "notify: 'echo \"$MAESTRO_CELERY_EVENT $MAESTRO_CELERY_NAME $MAESTRO_CELERY_STATE\" >> notified'\n",
    )
    study = run(SPEC)
    study.await_text("sim/*/began", count=2)
    configure(environment, "batch: {'*': {bank: other}}\nnotify: touch other\n")
    (conductor,) = (pid for pid, line in study.processes("bin/conductor").items() if "python" in line)
    os.kill(conductor, signal.SIGTERM)
    notified = study.path / "notified"
    wait_for(lambda: notified.exists() and notified.read_text(), "the notification of the interruption")
    assert notified.read_text() == "end sweep INTERRUPTED\n"
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor, which does not wait for the command")

    (study.path.parent / "go").touch()
    specification = study.path.parent / "study.yaml"
    specification.write_text(specification.read_text().replace("--concurrency 2", "--concurrency 1"))
    answer = study.command("maestro-celery", "resume", "--spec", str(specification), str(study.path))
    assert answer.returncode == 0, answer.stderr
    study.await_end()

    assert notified.read_text().splitlines()[1:] == ["failure sweep RUNNING", "end sweep FINISHED"]
    batch = yaml.safe_load((study.path / "batch.info").read_text())
    assert (batch["settings"]["batch"], batch["batch_defaults"]) == ({"bank": "physics"}, {"bank": "physics"})
    assert not (study.path / "other").exists()
    (kept,) = (study.path / "merlin_info" / "session" / "notify").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "EVENT" not in (study.path / "batch.info").read_text()
