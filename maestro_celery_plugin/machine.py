"""This machine: its name, its identity, its CPUs."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from pathlib import Path

__all__ = ["host_name", "is_this_machine", "machine_id", "machine_number", "node_name", "usable_cpus"]


def host_name() -> str:
    """Return the name of this machine for messages; containers and cloned machines may have equal names."""
    return socket.gethostname()


def node_name() -> str:
    """Return the name of this machine in the batch system; that of the machine if the batch system does not tell."""
    return os.environ.get("SLURMD_NODENAME", host_name())


@functools.cache
def machine_id() -> str:
    """Identify the boot and the PID namespace of this process: only there do its process numbers mean anything.

    Two containers of one machine have different identities. So have two machines with equal names, and a machine before
    and after its restart. The text is empty where the kernel does not tell (only Linux does).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat()
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace.st_dev} {namespace.st_ino}".encode()).hexdigest()[:16]


def is_this_machine(machine: str, host: str = "") -> bool:
    """Tell whether process numbers that another process has stored are numbers of this machine.

    Args:
        machine: Its `machine_id`; empty for a file of release 0.1, and where the kernel does not tell.
        host: Its `host_name`, which decides without an identity; empty when it is unknown.
    """
    if machine and machine_id():
        return machine == machine_id()
    return not host or host == host_name()


@functools.cache
def machine_number() -> int:
    """Return the identity of this machine as a number of 64 bits, for the ledger."""
    text = machine_id() or host_name()
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
