"""A client of the broker that is not part of the study of a test."""

from __future__ import annotations

import re

import redis
from kombu.utils.url import url_to_parts

from maestro_celery_plugin.broker.access import ADMIN
from maestro_celery_plugin.broker.app import TASK_NAME, make_app, queue_for
from maestro_celery_plugin.broker.messages import Signer
from maestro_celery_plugin.states import RunMode
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["SPEC", "Intruder", "admin_of", "finish"]

# A study that runs until `finish`, so that messages arrive while it has a worker.
SPEC = """
    description: {name: intruder, description: d}
    study:
      - name: sim
        description: d
        run: {cmd: "echo run >> runs; sleep 0.3; echo $(A)", task_queue: q}
      - name: wait
        description: d
        run: {cmd: "while test ! -e $(SPECROOT)/go; do sleep 0.1; done", depends: [sim], task_queue: q}
    merlin:
      resources:
        workers:
          w: {args: --pool threads --concurrency 2 -l INFO}
      samples:
        generate: {cmd: "seq 1 12 > $(MERLIN_INFO)/a.csv"}
        file: $(MERLIN_INFO)/a.csv
        column_labels: [A]
"""


def finish(study) -> None:
    """Let the study end, and check that each sample has run once."""
    (study.path.parent / "go").touch()
    study.await_end()
    assert set(study.states().values()) == {"FINISHED"}
    assert study.outputs("sim/*/runs") == ["run\n"] * 12


def admin_of(session: Session, **options) -> redis.Redis:
    """Return a client of a private broker with the rights of its supervisor.

    Raises:
        OSError: the session has no broker now.
    """
    configuration = (session.path / "broker.conf").read_text()
    password = re.search(rf"^user {ADMIN} .*?>(\w+)", configuration, re.MULTILINE)
    location = session.read_broker()
    if location is None:
        raise ConnectionError("the session has no broker now")
    address = url_to_parts(location.url)
    return redis.Redis(host=address.hostname, port=address.port, username=ADMIN, password=password[1], **options)


class Intruder:
    """A client that can write to the broker, with or without the secret of the session."""

    def __init__(self, study) -> None:
        self.study = study
        self.session = Session(study.path / "merlin_info" / "session")
        self.signer = Signer(self.session.secret)
        self.app = make_app(self.session)
        broker = self.session.read_broker()
        self.redis = redis.Redis.from_url(broker.url) if broker.url.startswith("redis") else None
        # The one who runs the server can do what the users of the session cannot: delete all data, for example.
        self.admin = admin_of(self.session) if broker.supervisor else self.redis

    def send(self, *message, task_queue: str = "q", name: str = TASK_NAME, **options) -> None:
        self.app.send_task(name, args=list(message), queue=queue_for(self.session, task_queue), retry=False, **options)

    def signed(self, *fields) -> tuple:
        return *fields, self.signer.sign(*fields)

    def fields(self, start: int = 0, stop: int = 12, epoch: int = 1) -> tuple:
        """Return the fields of a message about the step record `sim`, as the conductor sends it."""
        plan = StudyPlan.read(self.study.path)
        return (str(plan.root), plan.id, "sim", 1, start, stop, epoch, int(RunMode.FIRST), 0)

    def worker_log(self) -> str:
        return "".join(self.study.outputs("merlin_info/workers/*.log"))
