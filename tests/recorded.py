"""Commands of batch systems on PATH that answer what was recorded, and keep what they were asked."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest


class Recorded:
    """Commands that answer with recorded output.

    Args:
        directory: Where they are made; it becomes all of PATH.
        monkeypatch: Sets PATH.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        directory.mkdir()
        monkeypatch.setenv("PATH", str(directory))

    def answer(self, name: str, out: str = "", err: str = "", code: int = 0, when: str = "") -> None:
        """Let a command answer; with `when`, only for arguments with this word, and fail for others."""
        path = self._directory / name
        texts = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2; exit {code}"
        body = f'case " $* " in *" {when} "*) {texts};; esac\n' if when else f"{texts}\n"
        head = f"#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done > {shlex.quote(str(path))}.asked\n"
        before = path.read_text().removesuffix("exit 1\n") if when and path.exists() else head
        path.write_text(f"{before}{body}{'exit 1' if when else ''}\n")
        path.chmod(0o755)

    def asked(self, name: str) -> list[str]:
        """Return the arguments of the last call of a command."""
        return Path(f"{self._directory / name}.asked").read_text().splitlines()
