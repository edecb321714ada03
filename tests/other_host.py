"""A simulated second host: namespaces of this machine with an own host name, own process numbers and a network link.

It sees the files of this machine, or those of one directory through a file server over the link (sshfs). Its clock is
that of this machine; `faketime` changes the clock of single commands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["COMMANDS", "OtherHost"]

COMMANDS = ("ip", "unshare", "nsenter", "hostname")

_SFTP_SERVERS = "/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh:/usr/libexec"
# No host has this link address: frames to it are lost without an error, as behind a switch that has failed.
_NOBODY = "02:00:00:00:00:99"
_START_S = 100.0


@dataclasses.dataclass
class OtherHost:
    """A simulated host with one network link to this machine.

    Args:
        name: Its host name.
        network: The first three numbers of the addresses of the link; no other network of this machine may use them. By
            default, they depend on the process, as other names do, so that several runs of the tests do not meet.
        mounted: A directory that the host reaches over the link only; None for a host that shares all files.
    """

    name: str = "otherhost"
    network: str = dataclasses.field(default_factory=lambda: f"10.213.{os.getpid() % 256}")
    mounted: Path | None = None
    _first: subprocess.Popen[bytes] | None = dataclasses.field(default=None, init=False, repr=False)
    _server: _FileServer | None = dataclasses.field(default=None, init=False, repr=False)

    @property
    def near(self) -> str:
        """The address of this machine on the link."""
        return f"{self.network}.1"

    @property
    def _far(self) -> str:
        return f"{self.network}.2"

    @property
    def _namespace(self) -> str:
        return f"{self.name}-{os.getpid()}"

    @property
    def _link(self) -> str:
        return f"to-{os.getpid()}"

    @property
    def pid(self) -> int:
        """The first process of the host, whose end is the end of all its processes."""
        assert self._first is not None
        found = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        return int(found[0])

    def __enter__(self) -> OtherHost:
        try:
            self._ip("netns", "add", self._namespace)
            self._ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
            self._ip("addr", "add", f"{self.near}/24", "dev", self._link)
            self._ip("link", "set", self._link, "up")
            for words in (("addr", "add", f"{self._far}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                self._ip("-n", self._namespace, *words)
            self._ip("-n", self._namespace, "link", "set", "lo", "up")
            self._boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _boot(self) -> None:
        namespaces = ("--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        program = 'hostname "$0" && echo ready && exec sleep infinity'
        words = ["ip", "netns", "exec", self._namespace, "unshare", *namespaces, "sh", "-c", program, self.name]
        self._first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"ready\n"
        if self.mounted is not None:
            self._server = _FileServer(self.near)
            options = f"directport={self._server.port},dir_cache=no,attr_timeout=0,entry_timeout=0,noforget"
            source = f"{self.near}:{self.mounted}"
            subprocess.run(self.command("sshfs", "-o", options, source, str(self.mounted)), check=True, timeout=_START_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._first is not None:
            with contextlib.suppress(OSError, IndexError):
                subprocess.run(["kill", "-KILL", str(self.pid)], check=False)
            self._first.kill()
            self._first.communicate()
        if self._server is not None:
            self._server.close()
        for words in (("link", "del", self._link), ("netns", "del", self._namespace)):
            with contextlib.suppress(subprocess.CalledProcessError):
                self._ip(*words)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs a command on the simulated host."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--net", "--pid", *words]

    def cut(self) -> None:
        """Cut the link: all packets are lost in both directions, and no side notices."""
        self._neighbours("replace", "lladdr", _NOBODY, "nud", "permanent")

    def restore(self) -> None:
        """Restore the link."""
        self._neighbours("del")

    def _neighbours(self, action: str, *words: str) -> None:
        self._ip("neigh", action, self._far, *words, "dev", self._link)
        self._ip("-n", self._namespace, "neigh", action, self.near, *words, "dev", "eth0")


class _FileServer:
    """Serves the files of this machine to sshfs, without encryption: one `sftp-server` per connection."""

    def __init__(self, address: str) -> None:
        command = shutil.which("sftp-server", path=_SFTP_SERVERS)
        assert command is not None, "sftp-server is not installed"
        self._command = command
        self._listener = socket.create_server((address, 0))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self._processes.append(subprocess.Popen([self._command], stdin=connection, stdout=connection))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for process in self._processes:
            process.kill()
            process.wait()
