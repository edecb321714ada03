"""The faults: by name, what can happen to a study."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from chaos.broker import Broker
from chaos.cluster import Cluster
from chaos.growth import Growth
from chaos.parts import Parts

__all__ = ["KILLS_A_SAMPLE", "cluster_faults_of", "faults_of"]

Faults: TypeAlias = dict[str, Callable[[], object]]
KILLS_A_SAMPLE = "kill one sample"


def faults_of(parts: Parts, broker: Broker, growth: Growth | None, *, gentle: bool) -> Faults:
    """Return the faults by name; gentle faults never make a sample run again.

    Args:
        parts: The study.
        broker: Its broker.
        growth: Its additions; None if it does not grow.
        gentle: Whether only gentle faults are allowed.
    """
    faults = {**_of_all(parts, broker), **(_of_private_broker(parts) if broker.is_private else {})}
    if not broker.is_private:
        faults["the broker is away"] = broker.go_away
    if growth:
        faults |= {"add samples": growth.add, "kill and repeat an addition": growth.kill_and_repeat}
    if not gentle:
        faults |= _of_workers(parts)
    return faults


def cluster_faults_of(cluster: Cluster, *, gentle: bool) -> Faults:
    """Return the faults of a cluster by name; gentle faults never make a sample run again."""
    faults = {"restart a node's daemon": cluster.restart_node, "restart the controller": cluster.restart_controller}
    if not gentle:
        faults |= {
            "cancel a job": cluster.cancel_job,
            "kill a job": cluster.kill_job,
            "let a job time out": cluster.time_out,
            "preempt the jobs": cluster.preempt,
            "set a node down": cluster.set_node_down,
            "kill the controller": cluster.kill_controller,
        }
    return faults


def _of_all(parts: Parts, broker: Broker) -> Faults:
    return {
        "pause the workers": lambda: parts.pause("worker"),
        "pause the workers and their samples": lambda: parts.pause("worker", "supervisor", "sample"),
        "pause the conductor": lambda: parts.pause("conductor"),
        "lose all messages": lambda: broker.flush(parts.session),
        "drop all clients": lambda: broker.drop_clients(parts.session),
        "drop all clients while the workers are stopped": lambda: _freeze_and_drop(parts, broker),
        "kill the conductor": lambda: (parts.kill("conductor"), parts.resume()),
        "resume a running study": parts.resume,
    }


def _of_private_broker(parts: Parts) -> Faults:
    return {
        "pause the broker": lambda: parts.pause("server"),
        "kill the broker": lambda: parts.kill("server"),
        "kill the supervisor of the broker": lambda: parts.kill("host"),
        "kill the broker and its supervisor": lambda: parts.kill("server", "host"),
    }


def _of_workers(parts: Parts) -> Faults:
    everything = ("conductor", "worker", "supervisor", "host", "server")
    return {
        "kill the workers": lambda: parts.kill("worker"),
        "kill the supervisors": lambda: parts.kill("supervisor"),
        "kill workers and supervisors": lambda: parts.kill("worker", "supervisor"),
        "kill everything": lambda: (parts.kill(*everything), parts.resume()),
        KILLS_A_SAMPLE: parts.kill_one_sample,
        "cancel and resume": parts.cancel_and_resume,
    }


def _freeze_and_drop(parts: Parts, broker: Broker) -> None:
    """Stop the workers while the broker closes their connections."""
    with parts.stopped("worker"):
        time.sleep(1.5)
        broker.drop_clients(parts.session)
        time.sleep(0.2)
