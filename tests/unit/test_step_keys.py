"""Keys of steps: a `batch` of their own, keys without effect, and walltimes of native steps."""

from __future__ import annotations

import pytest
import yaml

from maestro_celery_plugin.config.step_entry import STEP_KEY, step_settings
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.spec.launcher import batch_type_of, shell_of

SLURM = {"type": "slurm", "walltime": "1:00:00"}


@pytest.fixture
def load(tmp_path):
    def load(sim=None, post=None, batch=SLURM, **resources):
        data = {
            "description": {"name": "s", "description": "d"},
            "batch": batch,
            "study": [
                {"name": "sim", "description": "d", "run": {"cmd": "$(LAUNCHER) a $(X)", **(sim or {})}},
                {"name": "post", "description": "d", "run": {"cmd": "b", "depends": ["sim_*"], **(post or {})}},
            ],
            "merlin": {"samples": {"file": "x.csv", "column_labels": ["X"]}, "resources": resources},
        }
        # yaml writes 1:00:00 in quotes; the text of a user may have none
        text = yaml.safe_dump(data, sort_keys=False).replace("'", "")
        (tmp_path / "study.yaml").write_text(text)
        return Specification.load_specification(str(tmp_path / "study.yaml"))

    return load


def queues(specification):
    groups = specification.ensemble.resources.workers
    return {name: (group.task_queues, group.batch) for name, group in groups.items()}


LOCAL = {"batch": {"type": "local"}}


@pytest.mark.parametrize(
    ("resources", "others"),
    [
        ({}, {"default_worker": (("merlin",), None)}),
        ({"workers": {"w": {"steps": ["sim"]}}}, {"w": (("merlin",), None)}),
        ({"workers": {"w": {}}}, {"w": (("merlin",), None)}),
        ({"workers": {"w": {}}, "overlap": True}, {"w": (("merlin",), None)}),
        ({"unassigned": "maestro"}, {"default_worker": (("merlin",), None)}),
    ],
)
def test_a_step_with_a_batch_of_its_own_has_workers_of_its_own(load, resources, others):
    """Given a step whose batch differs and that no group names, then only a group of its own serves it."""
    specification = load(post=LOCAL, **resources)
    sim, post = (queues(specification).get(name) for name in (next(iter(others)), "post"))
    assert (sim, post) == (others[next(iter(others))], (("merlin_post",), {"type": "local"}))
    post = specification.get_study_steps()[1]
    assert batch_type_of(specification.ensemble, step_settings(post.run)) == "local"


def test_the_group_of_a_step_has_a_name_that_no_other_group_has(load):
    specification = load(post=LOCAL, workers={"post": {"steps": ["sim"]}})
    assert queues(specification)["post_batch"] == (("merlin_post_batch",), {"type": "local"})


@pytest.mark.parametrize("batch", [{"type": "slurm"}, {"shell": "/bin/sh"}, {"walltime": "1:00:00"}])
def test_a_batch_like_that_of_the_study_needs_no_other_workers(load, batch):
    assert list(queues(load(post={"batch": batch}))) == ["default_worker"]


def test_a_step_that_a_group_names_may_have_another_launcher(load):
    specification = load(post=LOCAL, workers={"w": {"steps": ["sim", "post"]}})
    assert list(queues(specification)) == ["w"]
    post = specification.get_study_steps()[1]
    assert batch_type_of(specification.ensemble, step_settings(post.run)) == "local"


@pytest.mark.parametrize(
    ("post", "sim", "workers", "problem"),
    [
        ({"batch": {"queue": "q"}}, {}, {"w": {"steps": ["post"]}},
         "study.post.run.batch.queue: the worker group 'w' runs this step, and decides it; set the key in "),
        ({"batch": {"queue": "q"}, "task_queue": "t"}, {}, {"w": {"task_queues": ["t"]}},
         "study.post.run.batch.queue: the worker group 'w' runs this step"),
        ({"batch": {"queue": "q"}, "task_queue": "t"}, {"task_queue": "t"}, {},
         "study.post.run.batch: the step has workers of its own, but shares the task queue 't' with 'sim'; "),
    ],
)  # fmt: skip
def test_a_batch_that_other_workers_cannot_follow_is_refused(load, post, sim, workers, problem):
    with pytest.raises(SpecificationError) as error:
        load(sim, post, workers=workers)
    assert str(error.value).startswith(f"study.yaml: {problem}")


def test_the_shell_is_that_of_the_step_then_of_its_batch_its_group_and_the_study(load):
    batch = {**SLURM, "shell": "env sh"}
    workers = {"v": {"steps": ["sim"]}, "w": {"steps": ["post"], "batch": {"shell": "env bash"}}}

    def shells(run):
        specification = load({}, run, batch=batch, workers=workers)
        return [shell_of(specification.ensemble, step_settings(step.run)) for step in specification.get_study_steps()]

    assert shells({}) == ["env sh", "env bash"]
    assert shells({"batch": {"shell": "env csh"}}) == ["env sh", "env csh"]
    assert shells({"batch": {"shell": "env csh"}, "shell": "python3"}) == ["env sh", "python3"]


@pytest.mark.parametrize(
    ("kind", "run", "notes"),
    [
        ("slurm", {"cmd": "a $(X)", "walltime": "5:00"}, ["walltime: the key has no effect, because it only affects programs"]),
        ("slurm", {"walltime": "5:00", "exclusive": False}, []),
        ("slurm", {"exclusive": True, "nested": True, "waitable": True, "qos": "x"},
         [f"{key}: the key has no effect on a step that workers run; " for key in ("exclusive", "nested", "qos", "waitable")]),
        ("slurm", {"bind": "rs"}, ["bind: $(LAUNCHER) of 'slurm' has no such option"]),
        ("lsf", {"bind": "rs", "exit_on_error": 0}, []),
        ("lsf", {"walltime": "5:00"}, ["walltime: $(LAUNCHER) of 'lsf' has no such option"]),
        ("local", {"walltime": "5:00", "bind": "rs", "qos": "x"}, []),
    ],
)  # fmt: skip
def test_each_key_without_effect_is_in_the_log(load, caplog, kind, run, notes):
    load(run, batch={**SLURM, "type": kind})
    found = [r.getMessage() for r in caplog.records if "study.sim.run" in r.getMessage()]
    assert len(found) == len(notes)
    for line, note in zip(found, notes, strict=True):
        assert line.startswith(f"study.yaml: study.sim.run.{note}")


@pytest.mark.parametrize(
    ("kind", "written", "passed", "meaning"),
    [
        ("slurm", "1:30:00", "01:30:00", ""),  # YAML 1.1 reads 5400, which Slurm would read as minutes
        ("flux", "1-02:00:00", "26:00:00", ""),
        ("lsf", "1:02:00:00", "26:00:00", ""),
        ("slurm", "30:00", "30:00", ""),
        ("lsf", "30:00", "30:00", "LSF reads '30:00' as hours and minutes"),
        ("slurm", 90, "90", "'slurm' reads 90 as minutes"),
        ("local", 90, 90, ""),
    ],
)
def test_a_walltime_of_a_native_step_means_the_same_on_all_batch_systems(load, caplog, kind, written, passed, meaning):
    specification = load(post={"walltime": written, "nodes": 1}, batch={**SLURM, "type": kind}, unassigned="maestro")
    post = specification.get_study_steps()[1]
    assert STEP_KEY not in post.run
    assert post.run["walltime"] == passed
    assert (meaning in caplog.text) and (bool(meaning) == ("elsewhere in the specification" in caplog.text))


@pytest.mark.parametrize(
    ("kind", "priority", "passed"),
    [("flux", "LOW", 0.29), ("flux", "Expedited", 1.0), ("flux", "HIGH", "HIGH"), ("flux", 0.5, 0.5), ("slurm", "LOW", "LOW")],
)
def test_maestro_can_read_the_priority_of_a_native_step(load, caplog, kind, priority, passed):
    specification = load(post={"priority": priority, "nodes": 1}, batch={**SLURM, "type": kind}, unassigned="maestro")
    assert specification.get_study_steps()[1].run["priority"] == passed
    assert ("ignores this key" in caplog.text) == (kind == "slurm")


def test_workers_do_not_hold_a_step(load):
    with pytest.raises(SpecificationError, match=r"study\.sim\.run\.priority: found 'HELD', but workers hold no step; use"):
        load({"priority": "HELD"})


@pytest.mark.parametrize(
    ("batch", "group", "where"),
    [
        ({**SLURM, "args": "-t 5"}, {"type": "local"}, "batch.args: found '-t'; use the key `walltime` instead."),
        (SLURM, {"args": {"time": 5}}, "merlin.resources.workers.w.batch.args: found '--time'; use the key"),
        (SLURM, {"args": "-C $(A)"}, "merlin.resources.workers.w.batch.args: found '-C $(A)', but $(A) is no variable"),
        ({**SLURM, "type": "flux", "args": "-x"}, {}, "batch.args: found '-x'; 'flux' needs a block of keys here."),
    ],
)
def test_options_are_checked_where_they_stand_also_for_native_steps(load, batch, group, where):
    with pytest.raises(SpecificationError) as error:
        load(post={"nodes": 1}, batch=batch, unassigned="maestro", workers={"w": {"steps": ["sim"], "batch": group}})
    assert str(error.value).startswith(f"study.yaml: {where}")


def test_options_of_one_batch_system_are_not_those_of_a_group_of_another(load):
    batch = {**SLURM, "args": "-C x"}
    load(batch=batch, workers={"w": {"steps": ["sim"], "batch": {"type": "flux"}}})
