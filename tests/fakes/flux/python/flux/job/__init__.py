"""flux.job: the functions with which Maestro's adapter submits, lists and cancels jobs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
import cluster

QUEUES = ("pbatch", "pdebug")
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
    why, _, text = job.why.partition(":")
    if why == "impossible":
        return "FAILED", "alloc", f"unsatisfiable request: {job.impossible}", code
    if why == "timeout":
        return "TIMEOUT", "timeout", "resource allocation expired", code
    if why == "cancel":
        return "CANCELED", "cancel", text.strip(), code
    if why:
        return "FAILED", why, text.strip() or f"job exception {why}", code
    return ("FAILED" if code else "COMPLETED"), "", "", code


def status_of(job: cluster.Job) -> str:
    """Return the status of a job in the form of `flux jobs`."""
    return {"pending": "SCHED", "running": "RUN", "cleanup": "CLEANUP"}.get(job.state) or result_of(job)[0]


def lack_of(
    nodes: int, wanted: int | None, slots: int, cores: int | None, gpus: int | None, exclusive: bool
) -> str:  # fmt: skip
    """Return what a request lacks on so many nodes: slots with cores and GPUs each; empty if it fits."""
    cores, gpus = cores or 1, gpus or 0
    total_cores, total_gpus = (int(cluster.number_of(name, default)) for name, default in (("FAKE_CORES", 2), ("FAKE_GPUS", 0)))
    if exclusive:
        return f"need {wanted} exclusive node(s), only {nodes} eligible" if (wanted or 1) > nodes else ""
    if wanted is not None:
        each = -(-slots // wanted)
        eligible = nodes if each * cores <= total_cores and each * gpus <= total_gpus else 0
        has = f" and {each * gpus} GPUs" if gpus else ""
        need = f"need {wanted} node(s) with {each * cores} cores{has} each"
        return f"{need}, only {eligible} eligible" if wanted > eligible else ""
    if gpus and slots * gpus > nodes * total_gpus:
        return f"need {slots} slot(s) with {gpus} GPU(s) each, only {nodes * total_gpus // gpus} available (total GPUs: {nodes * total_gpus})"
    fitting = nodes * (total_cores // cores)
    if slots > fitting:
        return f"need {slots} slot(s) of {cores} core(s), only {fitting} such slot(s) available (total cores: {nodes * total_cores})"
    return ""


class JobspecV1:
    """The specification of a job."""

    def __init__(
        self, command: list[str], nodes: int | None, slots: int, cores: int, gpus: int | None, exclusive: bool,
        queue: str | None, nested: bool,
    ) -> None:  # fmt: skip
        if exclusive and nodes is None:
            raise ValueError("exclusive can only be set with a node count")
        if (nodes or 1) > slots:
            raise ValueError("node count must not be greater than task count")
        self.lack = lack_of(int(cluster.number_of("FAKE_NODES", 4)), nodes, slots, cores, gpus, exclusive)
        self.command, self.nodes, self.nested, self.queue = command, nodes or 1, nested, queue
        self.attributes: dict[str, Any] = {}
        self.cwd, self.environment = str(Path.cwd()), dict(os.environ)
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
        return cls(command, num_nodes, num_slots, cores_per_slot, gpus_per_slot, exclusive, queue, nested=True)

    @classmethod
    def from_command(
        cls, command: list[str], num_tasks: int = 1, cores_per_task: int = 1, gpus_per_task: int | None = None,
        num_nodes: int | None = None, exclusive: bool = False, queue: str | None = None, bank: str | None = None,
    ) -> JobspecV1:  # fmt: skip
        """Return a job that is a parallel program."""
        return cls(command, num_nodes, num_tasks, cores_per_task, gpus_per_task, exclusive, queue, nested=False)

    def setattr(self, name: str, value: Any) -> None:
        """Set an attribute."""
        self.attributes[name] = value

    def setattr_shell_option(self, name: str, value: Any) -> None:
        """Set an option of the job shell."""
        self.attributes[f"shell.{name}"] = value


def submit(handle: Any, jobspec: JobspecV1, waitable: bool = False, urgency: int = 16) -> JobID:
    """Submit a job; one that can never start is accepted, and ends with an exception."""
    handle.check()
    if jobspec.queue not in (None, *QUEUES):
        raise PermissionError(1, f"Invalid queue '{jobspec.queue}' specified")
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
            signals={"timeout": [signal.SIGALRM], "cancel": [signal.SIGHUP]},
            signals_script=True,
            impossible=jobspec.lack,
        )
    )
    return identifier


def cancel(handle: Any, identifier: int) -> None:
    """End a job."""
    handle.check()
    job = cluster.read(int(identifier))
    if job is None:
        raise FileNotFoundError(2, "unknown job id")
    if job.state == "ended":
        raise FileNotFoundError(2, "job is inactive")
    job.end_request.write_text("cancel")


from flux.job import list  # noqa: E402 - Flux's own name
