"""Every page of the documentation, and the README: each command and each specification on it runs, with its output."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest
from support import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path, request: pytest.FixtureRequest):
    """Given an empty directory and an empty home, when the blocks of a page run in their order, then each does what the page says."""
    document = pages.parse(ROOT / page)
    environment: dict[str, str] = {}
    for need in pages.needs(ROOT / page):
        assert need == "slurm", f"{page} needs {need!r}; only 'slurm' is there"
        environment |= request.getfixturevalue("slurm").environment
    shell = pages.PageShell(tmp_path / "page", environment)
    try:
        pages.evaluate(document, shell)
    finally:
        shell.close()
