"""The name of a worker that claims it itself, as workers of allocations and those of users do, and its log."""

from __future__ import annotations

import os

from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_identity import claim_name, log_of, worker_stem

__all__ = ["claim_name_and_log"]

# Variables in which launchers store the rank of a task: srun, jsrun, and launchers with PMI.
_RANK_VARIABLES = ("SLURM_PROCID", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def claim_name_and_log(session: Session, group: str, allocation: str) -> str:
    """Claim a name for this worker, and redirect its output to the log of this name.

    Raises:
        OSError: the log cannot be created.
    """
    name = claim_name(session, worker_stem(group, allocation).rstrip("-"), first=1 + _rank())
    print(f"worker '{name}' on {host_name()}: its log is '{log_of(session, name)}'", flush=True)
    log = os.open(log_of(session, name), os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    return name


def _rank() -> int:
    """Return the number of this worker among those of its allocation, from 0; 0 if the launcher does not tell it.

    Without it, a thousand workers that begin at the same time would try each other's names one after the other.
    """
    values = (os.environ.get(name, "") for name in _RANK_VARIABLES)
    return next((int(value) for value in values if value.isdecimal()), 0)
