"""Odd values: whatever YAML can express is either refused with one line, or reaches the workers unchanged."""

from __future__ import annotations

import copy
import datetime
import functools
import logging
import math
from pathlib import Path

import pytest
import yaml

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.config.groups import batch_of, group_config
from maestro_celery_plugin.config.settings import BatchSettings, EnsembleSettings, ResourceSettings, WorkerGroupSettings
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro.ensemble_specification import EnsembleSpecification
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.study.plan import StudyPlan

SPECS = Path(__file__).parents[1] / "unit" / "specs"
BASE = yaml.safe_load((SPECS / "many_keys.yaml").read_text())
CYCLE: list = []
CYCLE.append(CYCLE)
VALUES = {
    "nothing": None,
    "number": 5,
    "fraction": -1.5,
    "huge number": 10**400,
    "nan": math.nan,
    "inf": math.inf,
    "lone surrogate": "q\ud800",
    "NUL": "a\0b",
    "token": "$(NOPE)",
    "long": "x" * 300,
    "date": datetime.date(2024, 1, 1),
    "binary": b"x",
    "set": {"x"},
    "list": [1],
    "key of another type": {1: "x"},
    "block": {"a": {"b": 1}},
    "itself": CYCLE,
    "deep": functools.reduce(lambda inner, _: [inner], range(200), "x"),
}
KEYS = (1, None, True, "", "q\ud800", "x" * 300)


def paths(node, at=()):
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in entries:
        yield (*at, key)
        yield from paths(item, (*at, key))


def changed(at, value=None, **new):
    """Return the base specification with another value, or another `key`, at a path."""
    data = copy.deepcopy(BASE)
    node = data
    for key in at[:-1]:
        node = node[key]
    if "key" in new:
        node[new["key"]] = node.pop(at[-1])
    else:
        node[at[-1]] = value
    return data


def check(data, what):
    """Check that a specification is refused with one line, or that its settings are stored and read back unchanged."""
    try:
        specification = EnsembleSpecification.read(data, "study.yaml", None)
        specification.get_study_environment()
    except SpecificationError as error:
        assert "\n" not in str(error), what
        str(error).encode()
        return
    plan = StudyPlan(root=Path("/x"), timestamp="t", settings=specification.ensemble)
    batch = plan.to_batch()
    assert StudyPlan.from_batch(batch) == plan or "nan" in str(batch), what
    for name in plan.settings.resources.workers:
        conversion.to_json(group_config(plan.settings, name, None)).encode()


@pytest.mark.parametrize("name", VALUES)
def test_a_value_at_any_place_is_refused_with_one_line_or_reaches_the_workers(name, monkeypatch):
    monkeypatch.setattr(logging.getLogger("maestro_celery_plugin"), "disabled", True)
    for at in paths(BASE):
        check(changed(at, VALUES[name]), (at, name))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:10])
def test_a_key_at_any_place_is_refused_with_one_line_or_reaches_the_workers(key):
    for at in paths(BASE):
        if not isinstance(at[-1], int):
            check(changed(at, key=key), (at, key))


GROUP = ("merlin", "resources", "workers", "g")


@pytest.mark.parametrize(
    ("at", "value", "start"),
    [
        (("batch", "launcher_args"), {1: "fast"},
         "batch.launcher_args: found the key '1', which YAML reads as a number; put it in quotes."),
        (("batch", "args", "b"), [{None: 1}], "batch.args.b.0: found the key 'null', which YAML reads as nothing;"),
        ((*GROUP, "batch"), {"args": {True: 1}},
         "merlin.resources.workers.g.batch.args: found the key 'true', which YAML reads as true or false;"),
        ((*GROUP, "batch"), {1: "fast"}, "merlin.resources.workers.g.batch: found the key '1', which YAML reads"),
        ((*GROUP, "batch"), {"1": "fast"}, "merlin.resources.workers.g.batch: unknown key '1'; allowed: "),
        (("study", 0, "run", "batch", "launcher_args"), {1: "x"}, "study.a.run.batch.launcher_args: found the key '1'"),
        (GROUP[:-1], {None: {}}, "merlin.resources.workers: found the key 'null', which YAML reads as nothing;"),
        (("env", "variables"), {1: "x"}, "env.variables: found the key '1', which YAML reads as a number;"),
        (("batch", "launcher_args"), {"d": datetime.date(2024, 1, 1)},
         "batch.launcher_args.d: found '2024-01-01', which YAML reads as a date; put the value in quotes, or use"),
        (("batch", "args"), {"b": [{"x"}]}, "batch.args.b.0: found '{'x'}', which YAML reads as a set;"),
        (("batch", "args"), {"b": b"x"}, "batch.args.b: found 'b'x'', which YAML reads as binary data;"),
        (("study", 0, "run", "task_queue"), "q\ud800",
         "study.a.run.task_queue: found 'q\\ud800' with a character that UTF-8 cannot encode; remove it."),
        (("study", 0, "run", "cmd"), "a\0b", "study.a.run.cmd: found 'a\\0b' with a NUL character; remove it."),
        (("study", 0, "name"), "q\ud800", "study[0].name: found 'q\\ud800' with a character"),
        (("merlin", "samples", "column_labels"), 5, "merlin.samples.column_labels: found '5'; a list is needed"),
        ((*GROUP, "steps"), CYCLE, "merlin.resources.workers.g.steps.0: the block contains itself through an alias"),
        (("batch", "args"), functools.reduce(lambda inner, _: {"a": inner}, range(200), "x"),
         "batch.args.a.a: the block has more than 50 levels; use fewer."),
        ((*GROUP, "idle_limit"), math.nan,
         "merlin.resources.workers.g.idle_limit: found 'nan'; a number of at least 1 is needed"),
        ((*GROUP, "warn"), math.inf,
         "merlin.resources.workers.g.warn: found 'inf'; a number of at least 6 and at most 31622400 is needed"),
        ((*GROUP, "drain"), 10**400, "merlin.resources.workers.g.drain: found '1000"),
        (("study", 0, "run", "retry_delay"), math.nan, "study.a.run.retry_delay: found 'nan'; a number of at least 0"),
        (("study", 0, "run", "max_retries"), 10**30, "study.a.run.max_retries: found '10000"),
        (("batch", "walltime"), "$(NOPE)", "batch.walltime: found '$(NOPE)', but $(NOPE) is no variable of env;"),
        (("batch", "queue"), "q_$(P)", "batch.queue: found 'q_$(P)', but $(P) is no variable of env; parameters have"),
        ((*GROUP, "batch", "walltime"), "$(NOPE)",
         "merlin.resources.workers.g.batch.walltime: found '$(NOPE)', but $(NOPE) is no variable of env;"),
        ((*GROUP, "allocation"), "x" * 300,
         "merlin.resources.workers.g.allocation: found a name of 300 bytes; it is also a file name, so it needs 1 to "),
        (GROUP[:-1], {"é" * 100: {}}, f"merlin.resources.workers.{'é' * 100}: found a name of 200 bytes; it is also"),
        (("env", "dependencies"), {"a": 1}, "env.dependencies: unknown key 'a'; allowed: 'git', 'paths'."),
        (("env", "labels"), {"L": None}, "env.labels.L: found nothing; text or a number or "),
        (("batch", "shell"), "q\ud800", "batch.shell: found 'q\\ud800' with a character"),
        ((*GROUP[:-1], "h", "batch"), {"shell": "/no/such"},
         "merlin.resources.workers.h.batch.shell: found '/no/such', which is not a program on this machine;"),
    ],
)  # fmt: skip
def test_each_odd_value_has_its_message(at, value, start):
    with pytest.raises(SpecificationError) as error:
        Specification.load_specification_from_stream(yaml.dump(changed(at, value)))
    assert str(error.value).removeprefix("specification: ").startswith(start), error.value


def test_text_of_an_environment_variable_that_is_not_utf_8_is_refused(monkeypatch):
    monkeypatch.setenv("TEST_VALUE", "q\udcff")
    data = changed(("env", "variables", "B"), "$TEST_VALUE")
    with pytest.raises(SpecificationError, match=r"env\.variables\.B: found 'q\\udcff' with a character"):
        Specification.load_specification_from_stream(yaml.dump(data))


def test_the_block_user_may_have_any_keys():
    user = {1: {None: "q\ud800"}, "itself": CYCLE}
    Specification.load_specification_from_stream(yaml.dump({**BASE, "user": user}))


def test_an_infinite_idle_limit_is_accepted():
    Specification.load_specification_from_stream(yaml.dump(changed((*GROUP, "idle_limit"), math.inf)))


@pytest.fixture
def settings():
    """Settings with an infinite number in a block with arbitrary keys, as a study of an earlier release may have."""
    group = WorkerGroupSettings(batch={"launcher_args": {"b": [-math.inf]}}, task_queues=("q",))
    return EnsembleSettings(
        batch=BatchSettings(type="flux", launcher_args={"a": math.inf, 1: "fast"}),
        resources=ResourceSettings(workers={"g": group, "h": WorkerGroupSettings(task_queues=("r",))}),
    )


def test_arbitrary_values_are_stored_as_they_are(settings):
    plan = StudyPlan(root=Path("/x"), timestamp="t", settings=settings)
    assert StudyPlan.from_batch(yaml.safe_load(yaml.safe_dump(plan.to_batch()))) == plan


def test_arbitrary_values_reach_a_group_and_its_workers_as_they_are(settings):
    groups = settings.resources.workers
    assert batch_of(settings, groups["g"]).launcher_args == {"b": [-math.inf]}
    assert batch_of(settings, groups["h"]).launcher_args == {"a": math.inf, 1: "fast"}
    text = conversion.to_json(batch_of(settings, groups["g"]))
    assert conversion.from_json(BatchSettings, text).launcher_args == {"b": [-math.inf]}


def test_values_of_an_earlier_release_can_be_stored_for_workers():
    old = BatchSettings(args={None: 1, 2: math.nan, datetime.date(2024, 1, 1): {"x"}, "b": b"\xff"})
    assert set(conversion.from_json(BatchSettings, conversion.to_json(old)).args) == {"null", "2", "2024-01-01", "b"}
