"""The reference documentation is complete, and its generated sections are those of the package."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import click
import pytest
import reference
from support import ROOT

import maestro_celery_plugin
from maestro_celery_plugin import states
from maestro_celery_plugin.cli import main as commands
from maestro_celery_plugin.config import conversion, settings
from maestro_celery_plugin.config.tokens import RESERVED

PAGES = sorted((ROOT / "docs").rglob("*.md"))
REFERENCE = ROOT / "docs" / "reference"
BASES = (conversion.Exact, settings.Block)
CLASSES = [c for c in vars(settings).values() if inspect.isclass(c) and issubclass(c, BASES[0]) and c not in BASES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_up_to_date(page):
    assert reference.updated(page.read_text()) == page.read_text(), "run `make docs`"


def test_each_section_is_in_one_page():
    """Given the pages, then each generated section is in one of them, and has its end."""
    text = "".join(page.read_text() for page in PAGES)
    for name in reference.SECTIONS:
        assert text.count(f"<!-- generated: {name} -->") == 1, name
    assert text.count("<!-- /generated -->") == len(reference.SECTIONS)


def run(directory):
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), str(directory)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=directory)


def test_the_command_replaces_the_text_between_the_markers(tmp_path):
    page = tmp_path / "below" / "page.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- generated: study codes -->\nold\n<!-- /generated -->\nbetween\n<!-- generated: exit codes -->\n<!-- /generated -->\nafter\n")

    assert run(tmp_path).returncode == 0

    first, _, last = page.read_text().partition("\nbetween\n")
    assert first.startswith("before\n")
    assert last.endswith("<!-- /generated -->\nafter\n")
    assert "It has finished or runs" in first
    assert "| 101 | `$(MERLIN_SOFT_FAIL)` |" in last
    assert "old" not in first


def test_an_unknown_section_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: kyes -->\n<!-- /generated -->\n")

    answer = run(tmp_path)

    assert answer.returncode == 1
    assert "page.md: no section 'kyes'; there are keys, " in answer.stderr
    assert page.read_text() == "<!-- generated: kyes -->\n<!-- /generated -->\n"


def test_every_settings_class_is_in_the_reference():
    """No user writes the other three: one combines blocks, and `StepFacts` and `StepNeeds` are derived."""
    derived = {settings.EnsembleSettings, settings.StepFacts, settings.StepNeeds}
    assert set(reference.BLOCKS) == set(CLASSES) - derived


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_setting_has_help(cls):
    assert cls is settings.StepNeeds or all(text.endswith(".") for text in reference.key_help(cls).values())


@pytest.mark.parametrize("cls", reference.BLOCKS, ids=lambda c: c.__name__)
def test_every_key_is_in_the_reference(cls):
    for key in conversion.keys_of(cls):
        assert f"| `{key}` |" in (REFERENCE / "keys.md").read_text()


def test_every_hook_is_documented():
    assert set(reference.hooks()) == {"open_samples", "attempt_finished", "batch_system"}
    for name, hook in reference.hooks().items():
        assert inspect.getdoc(hook), name
        assert f"::: maestro_celery_plugin.hookspecs.{name}\n" in (REFERENCE / "hooks.md").read_text()


def test_every_public_name_is_documented():
    """Given the names that a script or an extension may import, then each is in the reference, with its docstring."""
    text = (REFERENCE / "python.md").read_text() + (REFERENCE / "hooks.md").read_text()
    for name in set(maestro_celery_plugin.__all__) - {"__version__", "hookimpl"}:
        assert f"::: maestro_celery_plugin.{name}\n" in text, name
        assert inspect.getdoc(getattr(maestro_celery_plugin, name)), name


def test_every_state_and_exit_code_is_documented():
    for cls in (states.ExitCode, states.Outcome, states.WorkerState, states.RecordState, states.AllocationState):
        assert set(reference.member_help(cls)) == set(cls.__members__)


def test_every_command_and_option_has_help():
    context = click.Context(commands)
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        assert command.help, name
        for option in command.params:
            assert option.param_type_name == "argument" or option.help, f"{name} {option.name}"


def test_every_token_is_in_the_reference():
    text = (REFERENCE / "variables.md").read_text() + (REFERENCE / "exit-codes.md").read_text()
    for token in RESERVED:
        assert f"$({token})" in text


def test_the_tests_that_break_a_promise_exist():
    """Given the table of promises, then each test file that it names exists."""
    named = re.findall(r"`(tests/[a-z_/]+\.py)`", (ROOT / "docs" / "explanation" / "promises.md").read_text())

    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
