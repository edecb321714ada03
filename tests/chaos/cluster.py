"""The Slurm cluster in which the workers of a study run, and what can be done to its jobs, nodes and daemons."""

from __future__ import annotations

import random
import signal
import time

from slurm_cluster import CONTROLLER, NODES, SlurmCluster

from chaos.broker import PAUSES_S
from chaos.parts import Parts

__all__ = ["Cluster"]

_SOON_S = 1


class Cluster:
    """The cluster of a study.

    Args:
        slurm: The cluster.
        parts: The study.
        choose: Random choices.
    """

    def __init__(self, slurm: SlurmCluster, parts: Parts, choose: random.Random) -> None:
        self._slurm, self._parts, self._choose = slurm, parts, choose

    def jobs(self, *states: str) -> list[str]:
        """Return the jobs of the study that are in these states of Slurm."""
        words = ("squeue", "--noheader", f"--states={','.join(states) or 'all'}", "--format=%i|%Z")
        lines = self._slurm.attempt(*words).stdout.splitlines()
        return [line.partition("|")[0] for line in lines if line.partition("|")[2].startswith(str(self._parts.study.path))]

    def cancel_all(self) -> None:
        """Cancel what Slurm still lists of the study."""
        if jobs := self.jobs("PENDING", "RUNNING"):
            self._slurm.attempt("scancel", *jobs)

    def cancel_job(self) -> None:
        """Cancel a job as a user does, which cancels the steps that use it."""
        if jobs := self.jobs("PENDING", "RUNNING"):
            self._slurm.attempt("scancel", self._choose.choice(jobs))

    def kill_job(self) -> None:
        """Send SIGKILL to all processes of a job."""
        if jobs := self.jobs("RUNNING"):
            self._slurm.attempt("scancel", "--signal=KILL", "--full", self._choose.choice(jobs))

    def time_out(self) -> None:
        """Set the end of a job to a moment that its workers do not know; Slurm ends it within half a minute."""
        if jobs := self.jobs("RUNNING"):
            self._slurm.attempt("scontrol", "update", f"JobId={self._choose.choice(jobs)}", f"EndTime=now+{_SOON_S}")

    def preempt(self) -> None:
        """Let a job of higher priority take all nodes."""
        words = ("--partition=high", f"--nodes={len(NODES)}", "--exclusive", "--output=/dev/null", "--wrap=true")
        self._slurm.attempt("sbatch", *words)

    def set_node_down(self) -> None:
        """Set a node down, which ends its jobs, and return it to service."""
        node = self._choose.choice(NODES)
        self._slurm.attempt("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=chaos")
        time.sleep(self._choose.choice(PAUSES_S))
        self._slurm.attempt("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def restart_node(self) -> None:
        """Kill the daemon of a node, whose jobs go on, and start it again."""
        self._restart(self._choose.choice(NODES), signal.SIGKILL)

    def restart_controller(self) -> None:
        """End the controller of the cluster, so that no command is answered, and start it again."""
        self._restart(CONTROLLER, signal.SIGTERM)

    def kill_controller(self) -> None:
        """Kill the controller, which forgets the jobs of its last seconds, and start it again."""
        self._restart(CONTROLLER, signal.SIGKILL)

    def _restart(self, daemon: str, number: signal.Signals) -> None:
        self._slurm.stop(daemon, number)
        time.sleep(self._choose.choice(PAUSES_S))
        self._slurm.start(daemon)
