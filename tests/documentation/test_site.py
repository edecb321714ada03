"""The site: its strict build, and pages that need no network."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser
from support import BIN, ROOT

# What a browser loads by itself; links that a reader follows are not among them.
LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)")
LOADED_BY_STYLE = re.compile(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"') ]+)")
# The colour schemes of `mkdocs.yml`, by what a reader prefers.
SCHEMES = {"light": "default", "dark": "slate"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    place = tmp_path_factory.mktemp("site")
    answer = build(ROOT / "mkdocs.yml", place)
    assert answer.returncode == 0, answer.stderr
    return place


def build(configuration: Path, place: Path) -> subprocess.CompletedProcess[str]:
    # Not quietly: that would hide the warnings from the strict build as well.
    command = [str(BIN / "mkdocs"), "build", "--strict", "-f", str(configuration), "-d", str(place)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_site_builds(site: Path):
    """Given the pages, then the strict build has no complaint, and each page is in the site."""
    built = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")} - {"404.md"}
    assert built == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


@pytest.mark.parametrize("link", ["nowhere.md", "index.md#nowhere"])
def test_a_broken_link_stops_the_build(link: str, tmp_path: Path):
    """Given a page with a link to a page or a heading that does not exist, then the build fails and names the link."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n[link]({link})\n")
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text().replace("  - style.css\n", "  []\n"))

    answer = build(tmp_path / "mkdocs.yml", tmp_path / "site")

    assert answer.returncode != 0
    assert link in answer.stderr


def test_no_page_asks_the_network_for_anything(site: Path):
    """Given the built site, then no page and no style loads anything from another place."""
    pages = [(path, LOADED.findall(path.read_text())) for path in site.rglob("*.html")]
    styles = [(path, LOADED_BY_STYLE.findall(path.read_text())) for path in site.rglob("*.css")]

    assert len(pages) > 10
    assert [found for found in pages + styles if found[1]] == []


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that has no network."""
    with browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.mark.timeout(1800)  # eight minutes on two cores that ten times as many processes want
def test_each_page_shows_well(site: Path, chromium: Browser):
    """Given each page as a file in a browser, in both schemes and two widths, then it loads files only and fits the window."""
    for page in sorted(set(site.rglob("*.html")) - {site / "404.html"}):  # only a server shows this one
        chromium.open(page)
        for scheme, width in itertools.product(SCHEMES, (1400, 420)):
            show(chromium, scheme, width)
            # Not at once: the menus move when the window changes. The comment names the page that does not fit.
            chromium.wait_for(f"document.documentElement.scrollWidth <= innerWidth /* {page}, {scheme}, {width} */")
        assert chromium.complaints == [], page
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:", "about:", "blob:"))] == []


def show(chromium: Browser, scheme: str, width: int) -> None:
    """Show the page to a reader who prefers a scheme, in a window of this width."""
    chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    chromium.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
    )
    chromium.wait_for(f"document.body.dataset.mdColorScheme === '{SCHEMES[scheme]}'")


def test_the_search_works_in_files(site: Path, chromium: Browser):
    """Given a page as a file, when a reader searches a key, then the reference of keys is among the results."""
    chromium.open(site / "index.html")
    chromium.value("document.querySelector('[name=query]').focus()")
    chromium.call("Input.insertText", text="max_failures")
    # The page looks at the text when a key goes up, which may be before it has read its index.
    chromium.wait_for(
        "document.querySelector('[name=query]').dispatchEvent(new KeyboardEvent('keyup')) && "
        "[...document.querySelectorAll('.md-search-result__link')].some(e => e.href.includes('keys.html'))"
    )
