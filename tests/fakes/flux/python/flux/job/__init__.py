"""flux.job: the functions with which Maestro's adapter submits, lists and cancels jobs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
import cluster

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class JobID(int):
    """The identifier of a job: a number with a text form in base 58 (Flux RFC 19)."""

    def __new__(cls, value: int | str) -> JobID:
        """Create an identifier from a number or from its text form."""
        if isinstance(value, str) and value[:1] in ("ƒ", "f"):
            number = 0
            for letter in value[1:]:
                number = number * 58 + _BASE58.index(letter)
            value = number
        return super().__new__(cls, value)

    @property
    def f58(self) -> str:
        """The identifier in base 58."""
        number, text = int(self), ""
        while number or not text:
            number, rest = divmod(number, 58)
            text = _BASE58[rest] + text
        return f"ƒ{text}"


def result_of(job: cluster.Job) -> tuple[str, str, str, Any]:
    """Return result, type and note of the exception, and return code of a job."""
    if job.state != "ended":
        return "", "", "", ""
    code = -128 if job.code is None else job.code if job.code >= 0 else 128 - job.code
    if job.why == "timeout":
        return "TIMEOUT", "timeout", "resource allocation expired", code
    if job.why == "cancel":
        return "CANCELED", "cancel", "", code
    if job.why:
        return "FAILED", job.why, f"job exception {job.why}", code
    return ("FAILED" if code else "COMPLETED"), "", "", code


def status_of(job: cluster.Job) -> str:
    """Return the status of a job in the form of `flux jobs`."""
    return {"pending": "SCHED", "running": "RUN"}.get(job.state) or result_of(job)[0]


class JobspecV1:
    """The specification of a job."""

    def __init__(self, command: list[str], nodes: int | None, nested: bool) -> None:
        self.command, self.nodes, self.nested = command, nodes or 1, nested
        self.attributes: dict[str, Any] = {}
        self.cwd, self.environment = "", {}
        self.duration: float | None = None
        self.stdout = self.stderr = os.devnull

    @classmethod
    def from_nest_command(
        cls, command: list[str], num_slots: int = 1, cores_per_slot: int = 1, gpus_per_slot: int | None = None,
        num_nodes: int | None = None, exclusive: bool = False, conf: Any = None, queue: str | None = None,
        bank: str | None = None,
    ) -> JobspecV1:  # fmt: skip
        """Return a job that is a Flux instance."""
        assert num_slots >= 1
        assert cores_per_slot >= 1
        if exclusive and num_nodes is None:
            raise ValueError("exclusive can only be set with a node count")
        return cls(command, num_nodes, nested=True)

    @classmethod
    def from_command(
        cls, command: list[str], num_tasks: int = 1, cores_per_task: int = 1, gpus_per_task: int | None = None,
        num_nodes: int | None = None, exclusive: bool = False, queue: str | None = None, bank: str | None = None,
    ) -> JobspecV1:  # fmt: skip
        """Return a job that is a parallel program."""
        return cls(command, num_nodes, nested=False)

    def setattr(self, name: str, value: Any) -> None:
        """Set an attribute."""
        self.attributes[name] = value

    def setattr_shell_option(self, name: str, value: Any) -> None:
        """Set an option of the job shell."""
        self.attributes[f"shell.{name}"] = value


def submit(handle: Any, jobspec: JobspecV1, waitable: bool = False, urgency: int = 16) -> JobID:
    """Submit a job."""
    if jobspec.nodes > cluster.number_of("FAKE_NODES", 4):
        raise OSError(22, "unsatisfiable request")
    identifier = JobID(cluster.new_number())
    place = {"FLUX_URI": f"local://{cluster.root()}/{f'instance-{int(identifier)}' if jobspec.nested else 'system'}"}
    place["FLUX_ENCLOSING_ID" if jobspec.nested else "FLUX_JOB_ID"] = identifier.f58
    limit_s = jobspec.duration
    cluster.submit(
        cluster.Job(
            number=int(identifier),
            name=str(jobspec.attributes.get("system.job.name", "")),
            command=jobspec.command,
            cwd=jobspec.cwd,
            environment={**jobspec.environment, **place},
            nodes=jobspec.nodes,
            limit_s=None if limit_s is None else limit_s * cluster.number_of("FAKE_MINUTE_S", 60) / 60,
            out=str(Path(jobspec.cwd, jobspec.stdout.replace("{{id}}", identifier.f58))),
            err=str(Path(jobspec.cwd, jobspec.stderr.replace("{{id}}", identifier.f58))),
            signals={"timeout": [signal.SIGALRM], "cancel": [signal.SIGTERM]},
        )
    )
    return identifier


def cancel(handle: Any, identifier: int) -> None:
    """End a job."""
    job = cluster.read(int(identifier))
    if job is None:
        raise FileNotFoundError("unknown job id")
    if job.state != "ended":
        job.end_request.write_text("cancel")


from flux.job import list  # noqa: E402 - Flux's own name
