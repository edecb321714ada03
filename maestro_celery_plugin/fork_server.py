"""The fork server: a process that imports the modules of workers and hosts once, and forks them on request.

    python -m maestro_celery_plugin.fork_server DESCRIPTOR PADDING

`python_processes.py` starts it, and sends requests over a socket. The server has one thread and does nothing else, so
that its children begin in a simple state. It ends when the socket is closed; its children continue.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from maestro_celery_plugin.imports import one_thread
from maestro_celery_plugin.processes import ProcessId, exit_at_once, forget_variable, set_command_line

__all__ = ["main"]

# The programs in the order of their need. The modules of a program begin with the one that has the function `main`; the
# others are imported before it, so that no single import takes long, or are those that Celery imports by name.
_PROGRAMS: dict[str, tuple[str, ...]] = {
    "maestro_celery_plugin.host": (
        "maestro_celery_plugin.host.__main__",
        "redis",
        "kombu.utils.url",
        "maestro_celery_plugin.study.session",
    ),
    "maestro_celery_plugin.worker": (
        "maestro_celery_plugin.worker.__main__",
        "numpy",
        "kombu.transport.redis",
        "celery.app.amqp",
        "celery.app.log",
        "celery.apps.worker",
        "billiard.pool",
        "maestro_celery_plugin.plugins",
        "maestro_celery_plugin.worker.celery_worker",
        "celery.app.control",
        "celery.backends.base",
        "celery.concurrency.thread",
        "celery.events",
        "celery.fixups.django",
        "celery.worker.autoscale",
        "celery.worker.components",
        "celery.worker.consumer.consumer",
        "celery.worker.consumer.delayed_delivery",
        "celery.worker.strategy",
        "encodings.idna",
    ),
}
# Variables that only the process itself may know (`study/session.py`).
_SECRETS = ("MAESTRO_CELERY_BROKER_URL",)
_REQUEST_BYTES = 65536


def main() -> None:
    """Serve requests until the socket is closed; in a child, run the requested program."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in _SECRETS:
        forget_variable(name)
    gc.disable()  # imports create many objects and no garbage; searches for it would take an eighth of the time
    request = _Server(connection).serve()
    if request is None:
        exit_at_once(0)
    _run(request)


class _Server:
    """Answers the requests of one process.

    Args:
        connection: The socket, which keeps the limits of messages.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._imports = [(program, one) for program, (main, *others) in _PROGRAMS.items() for one in (*others, main)]
        self._waiting: list[tuple[dict[str, Any], int]] = []
        self._requests: dict[int, int] = {}
        self._wake, write_end = os.pipe()
        os.set_blocking(write_end, False)
        self._descriptors = (self._wake, write_end)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def serve(self) -> dict[str, Any] | None:
        """Serve requests; return None when the socket is closed, and the request in the process of a request."""
        while True:
            descriptors = [self._connection.fileno(), self._wake]
            readable, _, _ = select.select(descriptors, [], [], 0 if self._imports else None)
            if self._wake in readable:
                os.read(self._wake, 4096)
                self._report_ended()
            if self._connection.fileno() in readable and not self._receive():
                return None
            self._import_next()
            for request, output in list(self._waiting):
                if self._is_ready(request) and self._fork(request, output) == 0:
                    return request

    def _import_next(self) -> None:
        if self._imports:
            with one_thread():
                importlib.import_module(self._imports.pop(0)[1])
            gc.freeze()  # the memory of the children stays shared

    def _receive(self) -> bool:
        """Receive a request; return False if the socket is closed."""
        message, descriptors, _, _ = socket.recv_fds(self._connection, _REQUEST_BYTES, 1)
        if message:
            self._waiting.append((json.loads(message), descriptors[0]))
        return bool(message)

    def _is_ready(self, request: dict[str, Any]) -> bool:
        return not any(program == request["program"] for program, _ in self._imports)

    def _fork(self, request: dict[str, Any], output: int) -> int:
        """Fork a process, which gets the output of a request; return 0 in this process, else its number."""
        self._waiting.remove((request, output))
        pid = os.fork()
        if pid == 0:
            self._become_child(output)
        else:
            os.close(output)
            self._requests[pid] = request["number"]
            self._answer(request=request["number"], pid=pid, start=ProcessId.of(pid).start)
        return pid

    def _report_ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                self._answer(request=self._requests.pop(pid), code=os.waitstatus_to_exitcode(status))

    def _answer(self, **fields: int) -> None:
        with contextlib.suppress(OSError):  # the requesting process has died
            self._connection.send(json.dumps(fields).encode())

    def _become_child(self, output: int) -> None:
        """Close what belongs to the server, and begin a session with the output in the requested file."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._connection.close()
        for descriptor in (*self._descriptors, *(other for _, other in self._waiting)):
            os.close(descriptor)
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)


def _run(request: dict[str, Any]) -> NoReturn:
    """Run a program as if the interpreter had started it."""
    program, arguments = request["program"], request["arguments"]
    gc.enable()
    os.chdir(request["directory"])
    set_command_line([sys.executable, "-m", program, *arguments])
    sys.argv = [program, *arguments]
    importlib.import_module(_PROGRAMS[program][0]).main()
    sys.exit()


if __name__ == "__main__":
    main()
