"""What a user sees of a study in `status --watch`, and how keys change it; the state does not touch the terminal."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from maestro_celery_plugin.report.live.step_rows import Order, Row
from maestro_celery_plugin.report.sample_status import SampleStatus

__all__ = ["Browser", "Content", "Page", "pressed"]

_DOWN, _UP = ("down", "j"), ("up", "k")


class Page(enum.Enum):
    """What the screen shows."""

    STEPS = enum.auto()
    """Steps and step records."""
    FAILURES = enum.auto()
    """The failed samples of all steps, of a step, or of a step record."""
    OUTPUT = enum.auto()
    """What a failed sample has written."""
    WORKERS = enum.auto()
    """Allocations and workers."""
    HELP = enum.auto()
    """The keys."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Browser:
    """What the user has chosen.

    Attributes:
        page: The page.
        back: The state to which the user returns from the page; None for the first page.
        row: The key of the selected row (`step_rows.py`); None for the first row.
        place: The selected failed sample, or the first line that is shown of a text.
        order: The order of the rows.
        filter_text: What the rows contain.
        is_typing: Whether keys belong to the filter.
        opened: The steps that the user has opened.
        closed: The steps that the user has closed.
        scope: The step, and the step record or None, whose failed samples are shown; None for all.
        sample: The failed sample whose output is shown.
        shows_stdout: Whether its stdout is shown, and not its stderr.
        has_quit: Whether the user has left the watch.
    """

    page: Page = Page.STEPS
    back: Browser | None = None
    row: tuple[str, str | None] | None = None
    place: int = 0
    order: Order = Order.ATTENTION
    filter_text: str = ""
    is_typing: bool = False
    opened: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    scope: tuple[str, str | None] | None = None
    sample: SampleStatus | None = None
    shows_stdout: bool = False
    has_quit: bool = False


class Content(Protocol):
    """What the study has to show now, in the size of the terminal."""

    def rows(self, browser: Browser) -> Sequence[Row]:
        """Return the rows of the steps."""

    def failed(self, browser: Browser) -> Sequence[SampleStatus]:
        """Return the failed samples of the scope."""

    def text_lines(self, browser: Browser) -> int:
        """Return the number of lines of a page of text."""

    def room(self, browser: Browser) -> int:
        """Return the number of rows or lines that the page shows."""


def pressed(browser: Browser, key: str, content: Content) -> Browser:
    """Return the state after a key."""
    if browser.is_typing:
        return _typed(browser, key)
    if key == "q":
        return dataclasses.replace(browser, has_quit=True)
    if key in ("?", "h") and browser.page is not Page.HELP:
        return Browser(page=Page.HELP, back=browser)
    if key in ("escape", "left", "backspace") and browser.back is not None:
        return browser.back
    return _PAGES[browser.page](browser, key, content)


def _typed(browser: Browser, key: str) -> Browser:
    """Return the state after a key of the filter."""
    text = browser.filter_text
    if key == "enter":
        return dataclasses.replace(browser, is_typing=False)
    if key == "escape":
        return dataclasses.replace(browser, is_typing=False, filter_text="")
    if key == "backspace":
        return dataclasses.replace(browser, filter_text=text[:-1], row=None)
    sign = " " if key == "space" else key
    return dataclasses.replace(browser, filter_text=text + sign, row=None) if len(sign) == 1 else browser


def moved(place: int, key: str, count: int, room: int) -> int:
    """Return a place among `count` ones after a key that moves; the same place after another key."""
    step = max(1, room - 1)
    if key == "home" or key == "g":
        place = 0
    elif key == "end" or key == "G":
        place = count - 1
    else:
        place += (key in _DOWN) - (key in _UP) + step * ((key in ("page down", "space")) - (key == "page up"))
    return max(0, min(place, count - 1))


# --- the pages ---


def _on_steps(browser: Browser, key: str, content: Content) -> Browser:
    if key == "/":
        return dataclasses.replace(browser, is_typing=True, filter_text="", row=None)
    if key == "escape":
        return dataclasses.replace(browser, filter_text="")
    if key == "s":
        return dataclasses.replace(browser, order=browser.order.next())
    if key in ("a", "w"):
        return dataclasses.replace(browser, page=Page.WORKERS, back=browser, place=0)
    if key == "F":
        return dataclasses.replace(browser, page=Page.FAILURES, back=browser, place=0, scope=None)
    rows = content.rows(browser)
    if not rows:
        return browser
    place = place_of(rows, browser.row)
    row = rows[place]
    if key == "f" or (key in ("enter", "right") and row.is_open is None):
        return dataclasses.replace(browser, page=Page.FAILURES, back=browser, place=0, scope=row.key)
    if key in ("enter", "right", "left"):
        return _with_step(browser, row.step, is_open=not row.is_open if key == "enter" else key == "right")
    place = moved(place, key, len(rows), content.room(browser))
    return dataclasses.replace(browser, row=rows[place].key)


def place_of(rows: Sequence[Row], key: tuple[str, str | None] | None) -> int:
    """Return the place of a row; that of its step if it is not shown any more."""
    keys = [row.key for row in rows]
    if key is None:
        return 0
    if key in keys:
        return keys.index(key)
    return next((place for place, (step, _) in enumerate(keys) if step == key[0]), 0)


def _with_step(browser: Browser, step: str, *, is_open: bool) -> Browser:
    opened, closed = browser.opened - {step}, browser.closed - {step}
    row = (step, None)
    if is_open:
        return dataclasses.replace(browser, opened=opened | {step}, closed=closed, row=row)
    return dataclasses.replace(browser, opened=opened, closed=closed | {step}, row=row)


def _on_failures(browser: Browser, key: str, content: Content) -> Browser:
    samples = content.failed(browser)
    if not samples:
        return browser
    place = min(browser.place, len(samples) - 1)
    if key in ("enter", "right", "e", "o"):
        return Browser(page=Page.OUTPUT, back=browser, sample=samples[place], place=-1, shows_stdout=key == "o")
    return dataclasses.replace(browser, place=moved(place, key, len(samples), content.room(browser)))


def _on_text(browser: Browser, key: str, content: Content) -> Browser:
    if browser.page is Page.OUTPUT and key in ("e", "o"):
        return dataclasses.replace(browser, shows_stdout=key == "o", place=-1)
    room = content.room(browser)
    last = max(0, content.text_lines(browser) - room)  # the last line then is at the end of the screen
    place = last if browser.place < 0 else min(browser.place, last)
    return dataclasses.replace(browser, place=moved(place, key, last + 1, room))


_PAGES: dict[Page, Callable[[Browser, str, Content], Browser]] = {
    Page.STEPS: _on_steps,
    Page.FAILURES: _on_failures,
    Page.OUTPUT: _on_text,
    Page.WORKERS: _on_text,
    Page.HELP: _on_text,
}
