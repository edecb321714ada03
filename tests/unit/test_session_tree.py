"""The studies of a session as a tree."""

from __future__ import annotations

import json

import pytest
from ensembles import a_study
from rich.text import Text

from maestro_celery_plugin.report import terminal
from maestro_celery_plugin.report.session_tree import print_studies, session_studies
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Member, Members
from maestro_celery_plugin.study.session import Session


@pytest.fixture
def session(tmp_path):
    plan, _ = a_study(tmp_path / "first")
    return Session.create(plan.session)


def join(session, *parents):
    """Store members 1, 2, ... that these members have started."""
    for number, parent in enumerate(parents, 1):
        Members(session.path).write(
            Member(
                id=str(number), number=number, parent=parent, root=f"/studies/s{number}", state=MemberState.ENDED,
                variables={"ITER": str(number)}, started_by="next",
            )
        )  # fmt: skip


def test_a_chain_is_a_list_and_only_branches_are_indented(session):
    join(session, "", "1", "2", "2", "3", "5")
    found = session_studies(session.path)
    assert [(one.member.number, one.level) for one in found] == [(1, 0), (2, 0), (3, 1), (5, 1), (6, 1), (4, 1)]


def test_a_chain_may_be_longer_than_the_stack_of_python(session):
    join(session, *map(str, range(1100)))
    assert [one.level for one in session_studies(session.path)] == [0] * 1100


def test_a_study_that_was_removed_has_ended_and_one_that_was_killed_at_its_launch_was_not_launched(session):
    join(session, "", "1")
    Members(session.path).change("2", state=MemberState.LAUNCHED, process=(2**22 + 1, 0))
    assert [one.state for one in session_studies(session.path)] == ["ended", "not launched"]
    assert json.dumps([one.to_json() for one in session_studies(session.path)])


def test_the_table_fits_into_a_terminal(session, capsys, monkeypatch):
    join(session, "", "1", "1")
    Members(session.path).change("3", root="/studies/" + "a_long_name_" * 20, variables={"X": "y" * 100})
    monkeypatch.setenv("COLUMNS", "80")
    print_studies(session_studies(session.path))
    lines = capsys.readouterr().out.splitlines()
    assert all(Text(line).cell_len <= 80 for line in lines)
    assert lines[0].split() == ["STUDY", "STATE", "STARTED", "BY", "VARIABLES"]
    assert lines[1].split() == ["s1", "ended", "next", "ITER=1"]
    assert terminal.shortened("a_long_name_" * 20, 30) in lines[3]
    assert f"X={terminal.shortened('y' * 100, 24)}" in "".join(lines[3:]).replace(" ", "")
