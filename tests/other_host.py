"""A simulated second host: a network namespace of this machine with its own host name and a shared file system."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from types import TracebackType

__all__ = ["COMMANDS", "OtherHost"]

COMMANDS = ("ip", "unshare", "hostname")


@dataclasses.dataclass(frozen=True)
class OtherHost:
    """A simulated host with one network link to this machine.

    Args:
        name: Its host name, at most 12 characters.
        network: The first three numbers of the addresses of the link; no other network of this machine may use them.
    """

    name: str = "otherhost"
    network: str = "10.213.77"

    @property
    def near(self) -> str:
        """The address of this machine on the link."""
        return f"{self.network}.1"

    @property
    def _link(self) -> str:
        return f"to-{self.name}"

    def __enter__(self) -> OtherHost:
        self._ip("netns", "add", self.name)
        self._ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        self._ip("addr", "add", f"{self.near}/24", "dev", self._link)
        self._ip("link", "set", self._link, "up")
        for words in (("addr", "add", f"{self.network}.2/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            self._ip("-n", self.name, *words)
        self._ip("-n", self.name, "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for words in (("link", "del", self._link), ("netns", "del", self.name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                self._ip(*words)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs a command on the simulated host."""
        run_as_host = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", run_as_host, self.name, *words]
