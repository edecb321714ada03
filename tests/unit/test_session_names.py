"""Worker groups of a study that joins a session: those of others as they are, or names of its own."""

from __future__ import annotations

import json

import pytest

from maestro_celery_plugin.config.groups import shared_groups
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    StepFacts,
    WorkerGroupSettings,
)
from maestro_celery_plugin.spec.session_names import SessionNames


def settings(steps=None, **groups):
    """Return settings with these worker groups, each with a task queue and a step of its name or those given."""
    workers = {name: WorkerGroupSettings(**{"task_queues": (f"q{name}",), **keys}) for name, keys in groups.items()}
    facts = steps or {name: workers[name].task_queues for name in workers}
    return EnsembleSettings(
        batch=BatchSettings(),
        resources=ResourceSettings(workers=workers),
        steps={name: StepFacts(queues=queues) for name, queues in facts.items()},
    )


def stored(other):
    """Return the groups of a study as its file in the session has them."""
    return json.loads(json.dumps(shared_groups(other)))


def test_a_group_with_the_same_configuration_is_shared():
    own = settings(a={"args": "--concurrency 2"}, b={"idle_limit": float("inf")})
    names = SessionNames(own, [stored(own)], 2)
    assert names.renamed == {}
    assert names.settings is own


@pytest.mark.parametrize(
    "change",
    [{"args": "--concurrency 3"}, {"batch": {"type": "slurm"}}, {"task_queues": ("other",)}, {"warn": 7.0}],
)
def test_a_group_with_another_configuration_gets_a_name_of_its_own(change):
    names = SessionNames(settings(a={}, b={}), [stored(settings(a=change))], 3)
    assert names.renamed == {"a": "a_3"}
    workers = names.settings.resources.workers
    assert {name: group.task_queues for name, group in workers.items()} == {"a_3": ("qa_3",), "b": ("qb",)}
    assert {name: step.queues for name, step in names.settings.steps.items()} == {"a": ("qa_3",), "b": ("qb",)}


def test_a_task_queue_of_another_group_is_not_served_twice():
    """Given another study whose group `x` serves `qa`, then a message of this study must not reach its workers."""
    names = SessionNames(settings(a={}), [stored(settings(x={"task_queues": ("qa",)}))], 2)
    assert names.renamed == {"a": "a_2"}


def test_groups_that_belong_together_are_renamed_together():
    own = settings(
        a={"task_queues": ("q",)}, b={"task_queues": ("q", "r")}, c={"allocation": "x"}, d={"allocation": "x"},
        steps={"one": ("q",), "two": ("r",)},
    )  # fmt: skip
    names = SessionNames(own, [stored(settings(b={"args": "-c 9"}, d={"args": "-c 9"}))], 2)
    assert names.renamed == {name: f"{name}_2" for name in "abcd"}
    assert [names.settings.resources.workers[f"{name}_2"].allocation for name in "cd"] == ["x_2", "x_2"]


def test_a_name_that_another_study_has_is_not_taken():
    names = SessionNames(settings(a={}), [stored(settings(a={"args": "-c 9"})), stored(settings(a_2={}))], 2)
    assert names.renamed == {"a": "a_2_"}


def test_the_steps_get_the_task_queues_of_the_session():
    own = settings(a={"task_queues": ("p.1", "p.2")}, b={}, steps={"one": ("p.1", "p.2"), "b": ("qb",)})
    names = SessionNames(own, [stored(settings(a={"args": "-c 9"}))], 2)
    study = [{"name": "one", "run": {"task_queue": "p.$(P)"}}, {"name": "b", "run": {"cmd": "x"}}]
    assert names.steps(study, own) == [{"name": "one", "run": {"task_queue": "p.$(P)_2"}}, study[1]]
