"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import Recorded


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Commands on PATH that print recorded output."""
    return Recorded(tmp_path / "commands", monkeypatch)
