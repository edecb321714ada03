"""The report as one HTML page, which needs no network.

The page's Content-Security-Policy allows the two scripts of the page by their hashes, and nothing else: no network, and
no script in a text of the study, should it ever get into the page as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.report.summary import StudySummary
from maestro_celery_plugin.report.terminal import duration_words

__all__ = ["LIMIT_BYTES", "page"]

LIMIT_BYTES = 5_000_000
_NEEDED = ("altair", "jinja2", "vl_convert")
_DRAW = """
"use strict";
for (const element of document.querySelectorAll("[data-chart]")) {
  const spec = JSON.parse(document.getElementById(element.dataset.chart).textContent);
  vegaEmbed(element, spec, {renderer: "svg", actions: false, ast: true}).catch(error => {
    element.textContent = "This chart cannot be drawn: " + error.message;
    console.error(error);
  });
}
"""


def page(summary: StudySummary) -> str:
    """Return the report of a study.

    Raises:
        StudyError: the extra `report` is not installed.
    """
    _check_extra()
    import jinja2

    from maestro_celery_plugin.report import charts
    from maestro_celery_plugin.report.chart_parts import PARTS

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        time=_time_words, length_of=_length_words, number=_number_words, percent=_percent_words, launch=_launch_words
    )
    scripts = [_library(), _DRAW]
    text: str = environment.get_template("page.html").render(
        study=summary,
        charts=charts.Charts.of(summary),
        shown=charts,
        parts=PARTS,
        scripts=scripts,
        policy=_policy(scripts),
        json=_json,
    )
    return text


def _check_extra() -> None:
    """Check that the packages of the extra are installed."""
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as cause:
            raise StudyError(
                f"The report needs the package '{cause.name or name}'; install the extra with `pip install "
                "'maestro-celery-plugin[report]'`. `maestro-celery report --json` prints the same numbers without it."
            ) from cause


def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, of the version of the specifications that Altair makes."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg] # the stub lacks a default
    return re.sub("</(?=script)", r"<\\/", script, flags=re.IGNORECASE)


def _policy(scripts: Iterable[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {sources}"


def _json(value: Any) -> str:
    """Return JSON for a script element, which no text in it can end."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _time_words(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if seconds else "-"


def _launch_words(timestamp: str) -> str:
    """Return the timestamp of a launch, ``YYYYMMDD-HHMMSS``, in the form of other times."""
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", timestamp)
    return "{}-{}-{} {}:{}:{}".format(*found.groups()) if found else timestamp


def _length_words(seconds: float | None) -> str:
    return "-" if seconds is None else duration_words(seconds)


def _number_words(number: float) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _percent_words(share: float) -> str:
    return f"{100 * share:.1f} %"
