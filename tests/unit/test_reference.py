"""The reference documentation is complete, and the README contains it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import click
import pytest
import reference
from support import ROOT

from maestro_celery_plugin import states
from maestro_celery_plugin.cli import main as commands
from maestro_celery_plugin.config import conversion, settings
from maestro_celery_plugin.config.tokens import RESERVED

README = (ROOT / "README.md").read_text()
BASES = (conversion.Exact, settings.Block)
CLASSES = [c for c in vars(settings).values() if inspect.isclass(c) and issubclass(c, BASES[0]) and c not in BASES]


def test_the_readme_is_up_to_date():
    assert reference.updated(README) == README, "run `make docs`"


def test_the_command_replaces_the_text_between_the_markers(tmp_path):
    document = tmp_path / "document.md"
    document.write_text(f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n")

    command = [sys.executable, str(ROOT / "tools" / "reference.py"), str(document)]
    subprocess.run(command, check=True, cwd=tmp_path)

    assert document.read_text().startswith("before\n")
    assert document.read_text().endswith("after\n")
    assert reference.reference() in document.read_text()
    assert "old" not in document.read_text()


def test_a_document_without_markers_is_refused(tmp_path):
    document = tmp_path / "document.md"
    document.write_text("no marker\n")

    command = [sys.executable, str(ROOT / "tools" / "reference.py"), str(document)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)

    assert answer.returncode == 1
    assert "markers" in answer.stderr
    assert document.read_text() == "no marker\n"


def test_every_settings_class_is_in_the_reference():
    """No user writes the other three: one combines blocks, and `StepFacts` and `StepNeeds` are derived."""
    derived = {settings.EnsembleSettings, settings.StepFacts, settings.StepNeeds}
    assert set(reference.BLOCKS) == set(CLASSES) - derived


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_setting_has_help(cls):
    assert cls is settings.StepNeeds or all(text.endswith(".") for text in reference.key_help(cls).values())


@pytest.mark.parametrize("cls", reference.BLOCKS, ids=lambda c: c.__name__)
def test_every_key_is_in_the_readme(cls):
    for key in conversion.keys_of(cls):
        assert f"| `{key}` |" in README


def test_every_hook_is_documented():
    assert set(reference.hooks()) == {"open_samples", "attempt_finished", "batch_system"}
    for name, hook in reference.hooks().items():
        assert inspect.getdoc(hook), name


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


def test_every_token_is_in_the_readme():
    for token in RESERVED:
        assert f"$({token})" in README


def test_the_tests_that_break_a_promise_exist():
    """Given the table of promises in the README, then each test file that it names exists."""
    table = README.partition("### Promises")[2].partition("### ")[0]
    named = re.findall(r"`(tests/[a-z_/]+\.py)`", table)

    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
