"""Another host, made of a network namespace of this machine and a name of its own; the file system is shared."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from types import TracebackType

__all__ = ["COMMANDS", "OtherHost"]

COMMANDS = ("ip", "unshare", "hostname")


@dataclasses.dataclass(frozen=True)
class OtherHost:
    """A host that reaches this one over one link.

    Args:
        name: Its host name, at most 12 characters.
        network: The first three numbers of the link's addresses, which nothing else here may use.
    """

    name: str = "otherhost"
    network: str = "10.213.77"

    @property
    def near(self) -> str:
        """This machine's address on the link."""
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
        """Return the command line that runs a command there."""
        there = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", there, self.name, *words]
