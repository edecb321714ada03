"""Checks of resources and times: one message per mistake, and no message for a value that is unknown at the launch."""

from __future__ import annotations

import pytest
import yaml

from maestro_celery_plugin.config import conversion
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro import launch
from maestro_celery_plugin.maestro.specification import Specification

SLURM = {"type": "slurm", "nodes": 4, "walltime": "1:00:00"}


def spec(run=None, batch=SLURM, group=None, groups=None, parameters=None):
    """Return a specification with one sampled step `sim`, which the worker group `w` serves."""
    blocks = {
        "description": {"name": "s", "description": "d"},
        "batch": batch,
        "study": [{"name": "sim", "description": "d", "run": {"cmd": "$(LAUNCHER) ./a $(X)", **(run or {})}}],
        "merlin": {
            "resources": {"workers": groups or {"w": {"steps": ["sim"], **(group or {})}}, "overlap": bool(groups)},
            "samples": {"file": "x.csv", "column_labels": ["X", "N"]},
        },
    }
    return {**blocks, "global.parameters": parameters} if parameters else blocks


@pytest.fixture(autouse=True)
def _outside_of_an_allocation(monkeypatch):
    for name in ("SLURM_JOB_ID", "LSB_JOBID", "FLUX_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def load(tmp_path):
    def read(data):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(data))
        return Specification.load_specification(str(path))

    return read


P = {"P": {"values": [1, 99], "label": "P.%%"}}

MISTAKES = {
    "retry_delay": (spec({"retry_delay": 400}),
        "study.sim.run.retry_delay: found 400 seconds, but workers of the group 'w' leave their allocation after 300 "
        "seconds without work; use a shorter delay, or a longer `idle_limit` for the group."),
    "nodes": (spec({"nodes": 8}),
        "study.sim.run.nodes: found 8 nodes; the allocation of worker group 'w' has 4 nodes; request fewer, or set "
        "more `nodes` for the group."),
    "nodes of a launch": (spec({"cmd": "$(LAUNCHER)[5n,5p] a $(X)"}),
        "study.sim.run.cmd: found 5 nodes; the allocation of worker group 'w' has 4 nodes; request fewer, or set "
        "more `nodes` for the group."),
    "nodes of the group": (spec({"nodes": 4}, group={"nodes": 1}),
        "study.sim.run.nodes: found 4 nodes; the allocation of worker group 'w' has 1 node; request fewer, or set "
        "more `nodes` for the group."),
    "no nodes": (spec({"nodes": 2}, batch={"type": "slurm"}),
        "study.sim.run.nodes: found 2 nodes; the allocation of worker group 'w' has 1 node; request fewer, or set "
        "more `nodes` for the group."),
    "bracket": (spec({"cmd": "$(LAUNCHER)[2x] a $(X)"}),
        "study.sim.run.cmd: found '$(LAUNCHER)[2x]'; use '[4p]', '[2n,4p]' or '[2, 4]' (nodes, procs)."),
    "bracket of the restart": (spec({"procs": 2, "restart": "$(LAUNCHER)[3p] a"}),
        "study.sim.run.restart: found '$(LAUNCHER)[3p]'; the step has procs: 2; a launch cannot have more."),
    "time request": (spec({"time_request": "0:59:31"}),
        "study.sim.run.time_request: found 00:59:31; the allocation of worker group 'w' has a walltime of 01:00:00, of "
        "which workers need 10 seconds to start, and samples receive their signal 20 seconds before the end (`warn`); request "
        "less time, or set a longer `walltime` for the group."),
    "GPUs": (spec({"gpus": 9}, group={"gpus": 2}),
        "study.sim.run.gpus: found 9 GPUs; the allocation of worker group 'w' has 8; request fewer, or set more `gpus` or "
        "`nodes` for the group."),
    "GPUs of tasks": (spec({"procs": 5, "gpus per task": 2}, group={"gpus": 2}),
        "study.sim.run.gpus per task: found 10 GPUs; the allocation of worker group 'w' has 8; request fewer, or set "
        "more `gpus` or `nodes` for the group."),
    "GPUs of the processes of Flux": (spec({"procs": 5, "gpus": 2}, batch={"type": "flux", "nodes": 4}, group={"gpus": 2}),
        "study.sim.run.gpus: found 10 GPUs; the allocation of worker group 'w' has 8; request fewer, or set more `gpus` or "
        "`nodes` for the group."),
    "procs of Flux": (spec({"nodes": 2, "procs": 1}, batch={"type": "flux", "nodes": 4}),
        "study.sim.run.procs: found 1 procs on 2 nodes; 'flux' requires a process for each node. Set more `procs`, or "
        "fewer `nodes`."),
    "procs of an allocation of Flux": (spec(batch={"type": "flux", "nodes": 4}, group={"procs": 3}),
        "merlin.resources.workers.w.procs: found 3 procs on 4 nodes; 'flux' requires a process for each node. Set more "
        "`procs`, or fewer `nodes`."),
    "all nodes without an allocation": (spec(batch={"type": "slurm", "nodes": "all"}),
        "merlin.resources.workers.w.nodes: found 'all', which means the nodes of the allocation around `maestro run`, "
        "but there is no such allocation; use a number."),
    "shared by the name of another group": (spec(groups={"a": {}, "b": {"allocation": "a", "nodes": 2}}),
        "merlin.resources.workers.b.allocation: found the allocation of 'a', but nodes is 2 here and 4 there; groups that "
        "share an allocation need the same value."),
    "shared partition": (spec(groups={"a": {"allocation": "x"}, "b": {"allocation": "x", "batch": {"queue": "q"}}}),
        "merlin.resources.workers.b.allocation: found the allocation of 'a', but queue is q here and none there; groups "
        "that share an allocation need the same value."),
    "a blank in the name": (spec(groups={"my group": {"steps": ["sim"]}}),
        "merlin.resources.workers.my group.allocation: found 'my group'; Maestro cannot submit batch jobs from a directory "
        "with a blank in its name. Use a name without a blank for the group, or for its `allocation`."),
    "shared under LSF": (
        spec(batch={"type": "lsf", "walltime": 60}, groups={"a": {"allocation": "x"}, "b": {"allocation": "x"}}),
        "merlin.resources.workers.b.allocation: found the allocation of 'a'; under LSF, `jsrun` gives the nodes to one "
        "group at a time. Use one allocation per group."),
    "text of the time request": (spec({"time_request": "soon"}),
        "study.sim.run.time_request: found 'soon'; HH:MM:SS or a number of seconds is needed."),
    "time request on this machine": (spec({"time_request": "0"}, batch={"type": "local"}),
        "study.sim.run.time_request: found '0'; a time above zero is needed."),
    "walltime of the step": (spec({"walltime": "1 hour"}),
        "study.sim.run.walltime: found '1 hour'; HH:MM:SS or a number of seconds is needed"),
    "walltime": (spec(batch={**SLURM, "walltime": "1h"}),
        "batch.walltime: found '1h'; HH:MM:SS or a number of seconds is needed."),
    "walltime of the group": (spec(group={"batch": {"walltime": "1:xx"}}),
        "merlin.resources.workers.w.batch.walltime: found '1:xx'; HH:MM:SS or a number of seconds is needed."),
    "no walltime": (spec(batch={"type": "lsf"}),
        "merlin.resources.workers.w.batch: the walltime is missing; Maestro requires it for jobs of the type 'lsf'. "
        "Add it here, or to `batch`."),
    "drain": (spec(group={"drain": 3600}),
        "merlin.resources.workers.w.drain: found 3600 seconds, but the allocation has a walltime of 01:00:00; no "
        "sample could start."),
    "warn": (spec(group={"warn": 4000.5}),
        "merlin.resources.workers.w.warn: found 4000.5 seconds, but the allocation has a walltime of 01:00:00; no "
        "sample could start."),
    "signal": (spec({"signal": "SIGUSR3"}),
        "study.sim.run.signal: found 'SIGUSR3'; did you mean 'SIGUSR2'?"),
    "local allocation": (spec(group={"allocation": "x", "batch": {"type": "local"}}),
        "merlin.resources.workers.w.allocation: found 'x', but workers of the batch type 'local' have no allocation; "
        "remove the key, or set another `batch.type` for the group."),
    "shared nodes": (spec(groups={"a": {"allocation": "x"}, "b": {"allocation": "x", "nodes": 2}}),
        "merlin.resources.workers.b.allocation: found the allocation of 'a', but nodes is 2 here and 4 there; "
        "groups that share an allocation need the same value."),
    "shared type": (spec(groups={"a": {"allocation": "x"}, "b": {"allocation": "x", "batch": {"type": "flux"}}}),
        "merlin.resources.workers.b.allocation: found the allocation of 'a', but batch.type is flux here and "
        "slurm there; groups that share an allocation need the same value."),
    "shared walltime": (spec(groups={"a": {"allocation": "x"}, "b": {"allocation": "x", "batch": {"walltime": 60}}}),
        "merlin.resources.workers.b.allocation: found the allocation of 'a', but walltime is 00:01:00 here and "
        "01:00:00 there; groups that share an allocation need the same value."),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_message(name, load):
    data, sentence = MISTAKES[name]
    with pytest.raises(SpecificationError) as error:
        load(data)
    assert str(error.value) == f"study.yaml: {sentence}"


@pytest.mark.parametrize(
    "data",
    [
        spec(),
        spec({"nodes": 4, "procs": 100, "time_request": "0:59:30", "walltime": "2:00:00", "signal": "SIGUSR1"}),
        spec({"nodes": "$(P)", "procs": "$(P)", "walltime": "$(P)", "time_request": "$(P)", "signal": "$(P)"}, parameters=P),
        spec({"procs": "$(N)"}),
        spec({"nodes": 8, "cmd": "$(LAUNCHER)[2x] a $(X)"}, batch={"type": "local"}),
        spec({"nodes": 8, "cmd": "a"}),
        spec({"nodes": 8, "batch": {"type": "local"}}),
        spec(batch={"type": "slurm"}, group={"drain": 10_000}),
        spec({"walltime": "inf"}, batch={"type": "local", "walltime": "as long as it takes"}),
        spec(batch={"type": "lsf", "walltime": 60}),
        spec(groups={"a": {"allocation": "x"}, "b": {"allocation": "x", "batch": {"walltime": 3600}}}),
    ],
    ids=range(11),
)
def test_requests_that_fit_or_are_unknown_are_accepted(data, load):
    assert load(data).ensemble


def test_inside_an_allocation_its_nodes_are_the_limit(load, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert load(spec({"nodes": 2}, batch={"type": "slurm"})).ensemble
    with pytest.raises(SpecificationError, match="found 3 nodes; the allocation of worker group 'w' has 2 nodes;"):
        load(spec({"nodes": 3}))


def test_a_request_for_more_nodes_than_the_current_allocation_has_logs_a_warning(load, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")

    load(spec())

    assert (
        "worker group 'w' requests 4 nodes, but the allocation around `maestro run` (job 7) has 2; the group uses these nodes."
        in caplog.text
    )


@pytest.mark.parametrize(("kind", "keys"), [("lsf", ["qos"]), ("flux", ["qos", "reservation"]), ("slurm", [])])
def test_each_key_that_maestros_adapter_ignores_logs_a_warning(load, caplog, kind, keys):
    load(spec(batch={"type": kind, "walltime": 600, "qos": "high", "reservation": "r"}))

    for key in ("qos", "reservation"):
        assert (f"batch.{key}: Maestro's adapter for '{kind}' ignores this key" in caplog.text) == (key in keys)


# --- at a launch -------------------------------------------------------------------------------------


@pytest.fixture
def launching(monkeypatch):
    monkeypatch.setattr(launch.OPTIONS, "launching", True)
    monkeypatch.setattr(launch.OPTIONS, "dry_run", True)  # a dry run does not check the broker


@pytest.mark.parametrize(
    ("run", "found"),
    [
        ({"procs": 145}, "145 procs with 1 core each; the allocation of worker group 'w' has 4 nodes with at most 36 cores"),
        ({"cores per task": 37}, "1 procs with 37 cores each; the allocation of worker group 'w' has 4 nodes with at most "
         "36 cores"),
        ({"nodes": 2, "procs": 73}, "73 procs with 1 core each on 2 nodes; the allocation of worker group 'w' has 4 nodes "
         "with at most 36 cores"),
    ],
)  # fmt: skip
def test_at_a_launch_cores_are_checked_against_the_nodes_of_the_batch_system(run, found, load, launching, recorded):
    recorded.answer("sinfo", "24\n36\n")
    with pytest.raises(SpecificationError) as error:
        load(spec({"shell": "/bin/sh", **run}, batch={**SLURM, "shell": "/bin/sh"}))
    assert str(error.value) == (
        f"study.yaml: study.sim.run.procs: found {found}; request fewer, or set more `nodes` for the group."
    )


def test_a_launch_continues_when_the_batch_system_does_not_answer(load, launching, recorded):
    recorded.answer("sinfo", err="slurm_load_partitions: Unable to contact slurm controller\n", code=1)
    assert load(spec({"procs": 10_000, "shell": "/bin/sh"})).ensemble


def test_the_batch_system_is_queried_at_a_launch_only(load, recorded):
    recorded.answer("sinfo", "36\n")
    assert load(spec({"procs": 10_000, "shell": "/bin/sh"})).ensemble


def test_resources_of_a_step_can_be_stored_in_plain_yaml(load):
    """Maestro reads `batch.info` with a loader that supports plain YAML only."""
    ensemble = load(spec({"procs": "$(N)", "cmd": "MERLIN_NODES=2\n$(VLAUNCHER) $(X)"})).ensemble
    stored = yaml.safe_load(yaml.safe_dump(conversion.to_dict(ensemble)))
    assert stored["steps"]["sim"]["needs"]["nodes"] == 2
    assert stored["steps"]["sim"]["needs"]["procs"] == 1
