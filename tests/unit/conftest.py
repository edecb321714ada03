"""What the unit tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import Recorded


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Commands on PATH that answer what was recorded."""
    return Recorded(tmp_path / "commands", monkeypatch)
