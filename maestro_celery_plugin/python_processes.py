"""Processes of this machine that run a module of this package: workers, and the host of the session.

Python needs about half a second of processor time until such a process can work, nearly all of it for imports. So
`prepare` starts a fork server, which imports the modules once, at the same time as the imports of its caller, and forks
a process of each request. Without a fork server, `start` runs the interpreter as usual.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from maestro_celery_plugin import clock

if TYPE_CHECKING:
    from maestro_celery_plugin.processes import ProcessId

__all__ = ["PADDING", "PythonProcess", "command_line", "prepare", "start"]

# Bytes in the command line of the fork server for the command lines of its children, which are visible in `ps`.
PADDING = 4096
_MAX_REQUEST = 65536
# A fork server on a busy machine or a slow file system needs many seconds for its imports.
_ANSWER_LIMIT_S = 60.0
# Exit code of a process whose real code is unknown, because the fork server has died.
_UNKNOWN = 1


class PythonProcess(Protocol):
    """A process that this process has started; `subprocess.Popen` has the same methods."""

    @property
    def pid(self) -> int:
        """The process number."""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""

    def kill(self) -> None:
        """Kill the process."""


def command_line(module: str, arguments: list[str]) -> list[str]:
    """Return the command line of a module with the interpreter and the packages of this process."""
    return [sys.executable, "-m", module, *arguments]


def prepare() -> None:
    """Start the fork server of this process, unless it runs already."""
    global _fork_server
    if _fork_server is None and sys.platform == "linux":  # the server needs /proc
        _fork_server = _ForkServer()


def start(module: str, arguments: list[str], directory: Path, output: IO[bytes]) -> PythonProcess:
    """Start a module of this package in a process group and a session of its own.

    Args:
        module: The module, which has a function `main`.
        arguments: Its command-line arguments.
        directory: The current directory of the process.
        output: The file for its output.

    Raises:
        OSError: the process cannot be started.
    """
    if _fork_server is not None and len("\0".join(command_line(module, arguments)).encode()) < PADDING:
        with contextlib.suppress(OSError):  # the fork server has died
            return _fork_server.start(module, arguments, directory, output)
    return subprocess.Popen(
        command_line(module, arguments),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


class _ForkServer:
    """The fork server of this process."""

    def __init__(self) -> None:
        self._socket, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with remote:
            self._process = subprocess.Popen(
                command_line("maestro_celery_plugin.fork_server", [str(remote.fileno()), " " * PADDING]),
                cwd="/",  # not that of the user: Python searches the current directory for modules first
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # an import that fails here fails again without the server, with a message
                pass_fds=(remote.fileno(),),
                start_new_session=True,
            )
        self._owner = os.getpid()
        self._children: list[_ForkedProcess] = []
        self.is_lost = False

    def start(self, module: str, arguments: list[str], directory: Path, output: IO[bytes]) -> _ForkedProcess:
        """Request a process; the answer with its number arrives later.

        Raises:
            OSError: the server does not take the request.
        """
        if os.getpid() != self._owner:
            raise BrokenPipeError("the fork server belongs to another process")
        request = {
            "number": len(self._children),
            "program": module,
            "arguments": arguments,
            "directory": str(directory),
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], [output.fileno()])
        child = _ForkedProcess(self)
        self._children.append(child)
        return child

    def receive(self) -> None:
        """Apply the answers that have arrived: the numbers of processes, and their exit codes."""
        while not self.is_lost:
            try:
                answer = self._socket.recv(_MAX_REQUEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                answer = b""
            if not answer:
                self.is_lost = True
                return
            fields: dict[str, Any] = json.loads(answer)
            self._children[fields.pop("request")].apply(**fields)

    def give_up(self) -> None:
        """Kill the server, because it does not answer."""
        self._process.kill()
        self.is_lost = True


class _ForkedProcess:
    """A process that the fork server has been asked for."""

    def __init__(self, server: _ForkServer) -> None:
        self._server, self._deadline = server, clock.monotonic() + _ANSWER_LIMIT_S
        self._id: ProcessId | None = None
        self._code: int | None = None

    def apply(self, *, pid: int | None = None, start: int = 0, code: int | None = None) -> None:
        """Apply an answer of the server."""
        from maestro_celery_plugin.processes import ProcessId  # imports psutil, which `prepare` does not need

        if pid is not None:
            self._id = ProcessId(pid, start)
        self._code = code

    @property
    def pid(self) -> int:
        """The process number; 0 if there is no process, because the server has died."""
        clock.wait_until(self._has_answer, _ANSWER_LIMIT_S, interval_s=0.005)
        return self._id.pid if self._id else 0

    def _has_answer(self) -> bool:
        self._server.receive()
        if self._id is None and clock.monotonic() > self._deadline:
            self._server.give_up()
        return self._id is not None or self._server.is_lost

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs, or is about to start."""
        if self._has_answer() and self._code is None and self._server.is_lost:
            is_alive = self._id is not None and self._id.is_alive
            self._code = None if is_alive else _UNKNOWN
        return self._code

    def kill(self) -> None:
        """Kill the process."""
        if self.pid and self._id:
            self._id.signal(signal.SIGKILL)


_fork_server: _ForkServer | None = None
