"""A Slurm cluster of four nodes on this machine, with real daemons and jobs; it ends without a trace.

Tests and benchmarks use it as a context manager::

    with SlurmCluster() as cluster:
        job = cluster.submit("--nodes=2", "study.sh")

It requires root (nodes start jobs as their users) and Debian's packages `slurm-wlm` and `munge`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

__all__ = ["COMMANDS", "CONTROLLER", "NODES", "ClusterError", "SlurmCluster"]

COMMANDS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "setpriv")
NODES = ("n1", "n2", "n3", "n4")
CONTROLLER = "slurmctld"

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
_START_S = _STATE_S = 200.0
_END_S = 30.0
_FIRST_PORT, _LAST_PORT = 17000, 31000  # below the ports that Linux uses for outgoing connections
_PORTS_APART = 10
_MUNGE_FILES = {
    "socket": "socket",
    "key-file": "key",
    "pid-file": "pid",
    "log-file": "munged.log",
    "seed-file": "seed",
}

_CONFIGURATION = """\
ClusterName=ensemble
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/%n.log

# Without cgroups: the machine may be a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters={selected}

# Each node has more CPUs than the machine, and the nodes share the CPUs of the machine.
SlurmdParameters=config_overrides
# A node that did not respond returns by itself; a node that was set down stays down.
ReturnToService=1
SlurmdTimeout={node_timeout_s}

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
MinJobAge={job_age_s}
# A machine under load may take long to end a job, or to answer.
KillWait=30
MessageTimeout=30
OverTimeLimit=0
InactiveLimit=0
# As on most clusters: Slurm refuses a job at its submission if no partition can ever run it.
EnforcePartLimits=ALL
{nodes}
PartitionName=DEFAULT Nodes=n[1-4] MaxTime=INFINITE DefaultTime=60 State=UP PreemptMode=OFF
PartitionName=debug Default=YES
PartitionName=small Nodes=n[1-2] MaxTime=30 DefaultTime=30
PartitionName=low PriorityTier=1 PreemptMode=CANCEL
PartitionName=high PriorityTier=10
"""


class ClusterError(Exception):
    """The cluster does not start, or one of its commands fails."""


@dataclasses.dataclass(kw_only=True)
class SlurmCluster:
    """The four nodes `n1` to `n4` with the partitions `debug`, `small` (two nodes), `low` and `high` (preempts `low`).

    Args:
        cpus: Configured CPUs of each node.
        memory_mb: Memory of each node, which Slurm then allocates to jobs like CPUs; None to allocate only CPUs.
        node_timeout_s: Seconds after which a node that does not respond is down.
        job_age_s: Seconds for which `squeue -t all` still lists a job that has ended.
        settings: Further settings of slurm.conf, by name; they replace the settings of this module.
    """

    cpus: int = 4
    memory_mb: int | None = None
    node_timeout_s: int = 120
    job_age_s: int = 3600
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    _directory: Path = dataclasses.field(init=False, repr=False)
    _daemons: dict[str, subprocess.Popen[bytes]] = dataclasses.field(init=False, repr=False, default_factory=dict)

    def __enter__(self) -> SlurmCluster:
        # Never in TMPDIR: the path of a Unix socket must have less than 108 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self._directory.chmod(0o755)
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._cancel_all()
        finally:
            self._end()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which commands use this cluster."""
        return {"SLURM_CONF": str(self._directory / "slurm.conf")}

    def run(self, *words: str | Path, cwd: Path | None = None, timeout_s: float = 60.0) -> str:
        """Run a command to its end, and return its stdout.

        Raises:
            ClusterError: the exit code is not 0.
        """
        answer = self.attempt(*words, cwd=cwd, timeout_s=timeout_s)
        if answer.returncode:
            raise ClusterError(f"{' '.join(map(str, words))}: exit code {answer.returncode}: {answer.stderr.strip()}")
        return answer.stdout

    def attempt(
        self, *words: str | Path, cwd: Path | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail; return its exit code and its output."""
        return subprocess.run(
            [str(word) for word in words],
            env=self._whole_environment(),
            cwd=cwd or self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def submit(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Submit a job with sbatch (options, then a script or `--wrap=...`); return the id of the job."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd).strip()

    def queue(self) -> list[str]:
        """Return the ids of the jobs that are pending, running or completing."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def state(self, job: str) -> str:
        """Return the state of a job, such as `RUNNING`; empty for a job that Slurm no longer lists."""
        return self.attempt("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").stdout.strip()

    def await_state(self, job: str, *states: str, timeout_s: float = _STATE_S) -> str:
        """Wait until a job has one of these states, and return its state.

        Raises:
            ClusterError: the job has none of these states after `timeout_s` seconds.
        """
        _await(lambda: self.state(job) in states, f"job {job} to be {' or '.join(states)}", timeout_s)
        return self.state(job)

    def limit(self, job: str, rest_s: int) -> None:
        """Set the end of a running job to `rest_s` seconds from now; sbatch would round the limit up to one minute.

        Slurm checks limits every 30 s, so the job may run up to 30 s longer.
        """
        self.run("scontrol", "update", f"JobId={job}", f"EndTime=now+{rest_s}")

    def node_states(self) -> dict[str, str]:
        """Return the state of each node, such as `idle` or `down`; a `*` marks a node that does not respond."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%N %T").splitlines()
        return {node: state for node, state in map(str.split, lines)}

    def set_down(self, node: str, reason: str = "test") -> None:
        """Set a node down: its jobs end as NODE_FAIL, or Slurm requeues them if they allow it."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", f"Reason={reason}")

    def set_up(self, node: str) -> None:
        """Return a node that is down to service, and wait until it is idle."""
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        _await(lambda: self.node_states()[node] == "idle", f"node {node} to be idle", _START_S)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon of a node or the controller; the jobs of a node go on without its daemon.

        A controller that is killed forgets the jobs of its last seconds, and their ids are given again.
        """
        self._daemons[name].send_signal(number)
        self._daemons[name].wait()

    def start(self, name: str) -> None:
        """Start the daemon of a node or the controller."""
        words = ("slurmctld", "-D") if name == CONTROLLER else ("slurmd", "-D", "-N", name)
        self._start_daemon(name, *words)

    def repair(self) -> None:
        """Start the daemons that have ended, and return all nodes to service."""
        for name in (CONTROLLER, *NODES):
            if self._daemons[name].poll() is not None:
                self.start(name)
        _await(lambda: self.attempt("sinfo").returncode == 0, "the controller", _START_S)
        for node, state in self.node_states().items():
            if state.startswith(("down", "drain")):
                self.attempt("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def log(self) -> str:
        """Return the end of the log of each daemon, for the message of a test that fails."""
        logs = [*self._directory.glob("*.log"), *self._directory.glob("munge/*.log")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(logs))

    def processes(self) -> list[int]:
        """Return the processes of this cluster: its daemons, its job steps, and their descendants."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        return [pid for pid in _pids() if mark in _environment_of(pid)]

    def _start(self) -> None:
        if os.geteuid() != 0:
            raise ClusterError("the daemons of a cluster require root")
        self._write_configuration()
        self._start_munge()
        self.start(CONTROLLER)
        for node in NODES:
            self.start(node)
        try:
            _await(self._is_idle, "four idle nodes", _START_S)
        except ClusterError as cause:
            raise ClusterError(f"{cause}\n{self.log()}") from cause

    def _is_idle(self) -> bool:
        if dead := [name for name, daemon in self._daemons.items() if daemon.poll() is not None]:
            raise ClusterError(f"daemons ended directly after their start: {', '.join(dead)}")
        answer = self.attempt("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%T")
        return answer.stdout.split() == ["idle"] * len(NODES)

    def _write_configuration(self) -> None:
        host = socket.gethostname().partition(".")[0]
        port, *node_ports = _free_ports(1 + len(NODES))
        memory = f" RealMemory={self.memory_mb}" if self.memory_mb else ""
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} "
            f"CPUs={self.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cpus} ThreadsPerCore=1{memory}"
            for node, node_port in zip(NODES, node_ports, strict=True)
        )
        text = _CONFIGURATION.format(
            host=host,
            port=port,
            directory=self._directory,
            selected="CR_Core_Memory" if self.memory_mb else "CR_Core",
            node_timeout_s=self.node_timeout_s,
            job_age_s=self.job_age_s,
            nodes=nodes,
        )
        Path(self.environment["SLURM_CONF"]).write_text(_with_settings(text, self.settings))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self._directory / name).mkdir(mode=0o755)

    def _start_munge(self) -> None:
        """Start the daemon that signs messages, under its own user and with a key for this cluster only."""
        user = pwd.getpwnam("munge")
        directory = self._directory / "munge"
        directory.mkdir(mode=0o755)
        key = directory / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for path in (directory, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        files = [f"--{what}={directory}/{name}" for what, name in _MUNGE_FILES.items()]
        identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._start_daemon("munged", "munged", "--foreground", "--force", *files, identity=identity)
        _await((directory / "socket").is_socket, "the socket of munged", _START_S)

    def _start_daemon(self, name: str, *words: str, identity: list[str] | None = None) -> None:
        """Start a daemon as a child that ends with this process, even when this process is killed.

        The kernel watches the thread that calls this, so it must be one that lasts as long as the cluster.
        Processes of jobs are not watched: when this process is killed, they go on to their own end.
        """
        with (self._directory / f"{name}.out.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *(identity or []), *words],
                env=self._whole_environment(),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _whole_environment(self) -> dict[str, str]:
        """Return the environment of this process, without an allocation of another cluster around the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return {**kept, "PATH": _PATH, **self.environment}

    def _cancel_all(self) -> None:
        self.attempt("scancel", "--user=root")
        with contextlib.suppress(ClusterError):  # the job of a node that is down stays in the state COMPLETING
            _await(lambda: not self.queue(), "all jobs to end", _END_S)

    def _end(self) -> None:
        """End the daemons, those of the nodes first, and all other processes of the cluster; remove its files."""
        for name in reversed(list(self._daemons)):
            self._daemons[name].terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemons[name].wait(_END_S)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        self._daemons.clear()
        _await(self._is_gone, "the end of the processes of the cluster", _END_S)
        shutil.rmtree(self._directory)

    def _is_gone(self) -> bool:
        """Kill the remaining processes of the cluster; return whether there was none."""
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids


def _with_settings(text: str, settings: Mapping[str, str]) -> str:
    """Return a slurm.conf with settings replaced or added, because each name may occur only once."""
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in settings]
    return "\n".join([*(f"{name}={value}" for name, value in settings.items()), *lines, ""])


def _free_ports(count: int) -> list[int]:
    """Return consecutive ports without a listener, if possible the same ports at each call.

    Raises:
        ClusterError: there are no such ports.
    """
    for first in range(_FIRST_PORT, _LAST_PORT, _PORTS_APART):
        ports = list(range(first, first + count))
        if all(map(_is_free, ports)):
            return ports
    raise ClusterError(f"no {count} free ports between {_FIRST_PORT} and {_LAST_PORT}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # The daemons set this option as well: a connection that has just ended does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _await(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"timed out after {timeout_s:.0f} s: {what}")
        time.sleep(0.1)
