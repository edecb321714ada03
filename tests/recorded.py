"""Commands of batch systems on PATH that print recorded output and store their arguments."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

RECORDINGS = Path(__file__).resolve().parent / "recordings"


@dataclasses.dataclass(frozen=True)
class Recording:
    """The answer of a real batch system to one command, from a file in `recordings`.

    Attributes:
        out: The lines on stdout.
        err: The lines on stderr.
        code: The exit code.
    """

    out: str
    err: str
    code: int

    @classmethod
    def read(cls, name: str) -> Recording:
        """Read a recording, such as ``flux/jobs-ended``; the lines of jobs are the lines on stdout."""
        lines = (RECORDINGS / f"{name}.txt").read_text().splitlines(keepends=True)
        ends = [re.fullmatch(r"\[rc (\d+)\]\s*", line) for line in lines[-1:]]
        answer = [line for line in lines if not line.startswith(("$ ", "[rc "))]
        out = [line for line in answer if line.startswith("ƒ")]
        err = [line for line in answer if not line.startswith("ƒ")]
        return cls("".join(out), "".join(err), int(ends[0][1]) if ends and ends[0] else 0)


class Recorded:
    """Commands that print recorded output.

    Args:
        directory: Directory of the commands, which this class creates; it becomes the only entry of PATH.
        monkeypatch: Sets PATH for the test.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        directory.mkdir()
        monkeypatch.setenv("PATH", str(directory))

    def answer(self, name: str, out: str = "", err: str = "", code: int = 0, when: str = "") -> None:
        """Set the output of a command; with `when`, only for calls with this argument, and let all other calls fail."""
        path = self._directory / name
        texts = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2; exit {code}"
        body = f'case " $* " in *" {when} "*) {texts};; esac\n' if when else f"{texts}\n"
        head = f"#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done > {shlex.quote(str(path))}.asked\n"
        before = path.read_text().removesuffix("exit 1\n") if when and path.exists() else head
        path.write_text(f"{before}{body}{'exit 1' if when else ''}\n")
        path.chmod(0o755)

    def replay(self, name: str, recording: str) -> None:
        """Let a command give the answer of a recording."""
        answer = Recording.read(recording)
        self.answer(name, answer.out, answer.err, answer.code)

    def asked(self, name: str) -> list[str]:
        """Return the arguments of the last call of a command."""
        return Path(f"{self._directory / name}.asked").read_text().splitlines()
