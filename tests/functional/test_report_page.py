"""The report in a real browser: what it draws at two widths, in a dark scheme, and on paper."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser
from report_studies import MadeStudy, attempt, lease, many_samples

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.report.page import page
from maestro_celery_plugin.report.study_summary import summarize

HOSTILE = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>"
# What belongs to the data in a chart of Vega; each has at least one element of these.
MARKS = ".mark-rect.role-mark path, .mark-symbol.role-mark path"
CHARTS = "[...document.querySelectorAll('[data-chart]')]"
# Pairs of labels of an axis of which one covers the other.
OVERLAPS = """
[...document.querySelectorAll('.role-axis-label')].flatMap(axis => {
  const seen = [...axis.querySelectorAll('text')].filter(e => e.getAttribute('opacity') !== '0' && e.textContent);
  const boxes = seen.map(e => [e.textContent, e.getBoundingClientRect()]);
  return boxes.slice(1).flatMap(([text, b], i) => {
    const [before, a] = boxes[i];
    const straight = !seen[i].getAttribute('transform').includes('rotate');
    const apart = b.left >= a.right - 1 || b.right <= a.left + 1 || b.top >= a.bottom - 3 || b.bottom <= a.top + 3;
    return straight && !apart ? [before + ' | ' + text] : [];
  });
})
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study of two steps, three columns, two allocations and sixteen machines."""
    root = tmp_path_factory.mktemp("report")
    many_samples(root / "study", 2000)
    (root / "report.html").write_text(page(summarize(root / "study")))
    return root / "report.html"


def keep(opened: Browser, name: str) -> None:
    """Store a screenshot where `REPORT_SCREENSHOTS` says, for a person who looks at it."""
    if "REPORT_SCREENSHOTS" in os.environ:
        opened.screenshot(Path(os.environ["REPORT_SCREENSHOTS"], f"{name}.png"))


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_chart_has_marks_and_readable_labels(chromium, report, width, dark):
    chromium.show(width, dark=dark)
    chromium.open(report)
    chromium.show(width, dark=dark)

    keep(chromium, f"{width}-{'dark' if dark else 'light'}")
    charts = chromium.value(f"{CHARTS}.map(e => [e.dataset.chart, e.querySelectorAll('{MARKS}').length])")
    assert {name.rpartition("-")[0] or name for name, _ in charts} >= {
        "timeline",
        "allocations",
        "column",
        "plane",
        "nodes",
    }
    assert [name for name, marks in charts if not marks] == []
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value(
        f"{CHARTS}.every(e => e.querySelector('svg').getBoundingClientRect().width <= e.clientWidth + 1)"
    )
    assert chromium.value(OVERLAPS) == []
    assert chromium.complaints == []


def test_the_page_asks_for_nothing_but_itself(chromium, report):
    chromium.requests.clear()

    chromium.open(report)

    assert [url for url in chromium.requests if not url.startswith("data:")] == [report.as_uri()]


def test_text_is_light_in_a_dark_scheme_and_dark_on_paper(chromium, report):
    chromium.open(report)

    def brightness() -> tuple[int, int]:
        colours = "[getComputedStyle(document.querySelector('.role-axis-label text')).fill, getComputedStyle(document.body).backgroundColor]"
        ink, paper = (sum(map(int, c.strip("rgba()").split(",")[:3])) for c in chromium.value(colours))
        return ink, paper

    chromium.show(1280, dark=True)
    assert brightness() > (550, 0) and brightness()[1] < 150
    chromium.show(800, dark=True, media="print")
    assert brightness()[0] < 200 and brightness()[1] == 765
    keep(chromium, "print")
    chromium.show(1280)


def test_a_mark_has_a_tooltip(chromium, report):
    chromium.show(1280)
    chromium.open(report)

    chromium.point_at("[data-chart=timeline] .mark-rect.role-mark path")

    chromium.wait_for("document.querySelector('.vg-tooltip.visible') !== null")
    assert "simulate" in chromium.value("document.querySelector('.vg-tooltip').textContent")


def test_the_timeline_zooms_with_ctrl_and_the_wheel(chromium, report):
    chromium.show(1280)
    chromium.open(report)
    ticks = (
        "[...document.querySelectorAll('[data-chart=timeline] .role-axis-label text')].map(e => e.textContent).join()"
    )
    before = chromium.value(ticks)

    chromium.turn_wheel("[data-chart=timeline] .mark-rect.role-mark path", ctrl=False)
    assert chromium.value(ticks) == before
    chromium.turn_wheel("[data-chart=timeline] .mark-rect.role-mark path", ctrl=True)

    chromium.wait_for(f"{ticks} !== {json.dumps(before)}")


def test_hostile_text_stays_text(chromium, tmp_path):
    """Given a step, a column, values, a parameter, stderr and a specification with HTML and scripts,
    then the page shows them as text, and nothing of them becomes an element or runs."""
    table = "".join(f'{i},"{HOSTILE}{i % 2}"\n' for i in range(8))
    study = MadeStudy(tmp_path / "study", ("X", "<b>KIND"), table, 8)
    study.specification(f"description: {HOSTILE}\n")
    for number, value in ((1, "1"), (2, f"<i>{HOSTILE}".replace("/", "\\"))):
        manifest = study.record(number, f"<u>step{HOSTILE}".replace("/", "|"), 8, params=f"GAIN:{value}")
        runs = [attempt(i, 10 * number + i, 10 * number + i + 0.9, code=i // 6, record=number) for i in range(8)]
        study.ledger(f"sim-{number}", lease(10 * number, 10 * number + 9, *runs, record=number))
        stderr = Path(manifest.workspace, manifest.paths.of(6), f"{manifest.script}.err")
        stderr.parent.mkdir(parents=True)
        stderr.write_text(f"{HOSTILE}\n")
        study.facts(f"sim-{number}", f"<s>node{HOSTILE}")
    (tmp_path / "report.html").write_text(page(summarize(study.plan.root)))

    chromium.open(tmp_path / "report.html")
    chromium.show(1280)
    keep(chromium, "hostile")
    chromium.point_at("[data-chart=timeline] .mark-rect.role-mark path")
    chromium.wait_for("document.querySelector('.vg-tooltip.visible') !== null")

    text = chromium.value("document.body.innerText")
    assert chromium.value("document.querySelector('pre').textContent").strip() == HOSTILE
    assert f"{HOSTILE}0" in text and "<u>step" in text and "<s>node" in text
    assert chromium.value("document.querySelectorAll('img, u, s, i, iframe').length") == 0
    assert chromium.value("window.harmed") is None
    assert chromium.complaints == []


def test_a_study_without_samples_has_a_page(chromium, tmp_path):
    study = MadeStudy(tmp_path / "study")
    study.record(1, "prepare", 1, state="INITIALIZED", sampled=False)
    (tmp_path / "report.html").write_text(page(summarize(study.plan.root)))

    chromium.open(tmp_path / "report.html")

    assert "No sample has run." in chromium.value("document.body.innerText")
    assert chromium.complaints == []


def test_a_study_of_many_steps_allocations_and_failures_stays_readable(chromium, tmp_path):
    study = MadeStudy(tmp_path / "study", ("A", "B"), "".join(f"{i},{i % 7}\n" for i in range(60)), 60)
    for number in range(1, 31):
        study.record(number, f"a_step_with_a_long_name_{number:02}", 60)
        runs = [
            attempt(i, 100 * number + i, 100 * number + i + 0.8, code=int(i % 11 == 0) * (number % 3), record=number)
            for i in range(60)
        ]
        study.ledger(f"sim-{number}-1", lease(100 * number, 100 * number + 61, *runs, record=number))
        study.facts(f"sim-{number}-1", f"node{number % 5}", f"sim/{number}")
        study.allocation(number, submitted_at=90.0 * number, began_at=99.0 * number, ended_at=100 * number + 70.0)
    study.ledger("coordinator", [(Kind.SENT, 0, 0, 1, 1, 0, 60, 0.0)])
    (tmp_path / "report.html").write_text(page(summarize(study.plan.root)))

    for width in (1280, 420):
        chromium.show(width)
        chromium.open(tmp_path / "report.html")
        chromium.show(width)
        keep(chromium, f"many-{width}")
        assert chromium.value("document.documentElement.scrollWidth") <= width
        assert chromium.value(OVERLAPS) == []
    assert chromium.complaints == []
