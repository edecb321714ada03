"""The launcher: the command line for `$(LAUNCHER)`, the resources of a sample, and the slots of an allocation."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from maestro_celery_plugin.batch.packing import fewest_slots, slot_count, worker_slots
from maestro_celery_plugin.config.resources import ScriptCount, StepNeeds
from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    StepSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.spec.launcher import batch_type_of, launches, needs_of, with_launcher

SRUN = 'srun -Q --exact --mem=0 -J "$MAESTRO_CELERY_LAUNCH"'
FEWEST_NODES = "-N $MAESTRO_CELERY_NODES"
STEP = {"nodes": 2, "procs": 8}


def sized(nodes=0, procs=0, **more):
    return StepNeeds(nodes=nodes, procs=procs, **more)


# --- resources of a sample ---------------------------------------------------------------------------


def test_the_keys_of_maestro_and_merlin_give_the_resources_of_a_sample():
    run = {
        "nodes": 2, "procs": 8, "cores per task": 4, "gpus": 1, "gpus per task": 2, "walltime": "1:30:00",
        "reservation": "r", "bind": "rs", "num resource set": 3, "exit_on_error": 0, "cmd": "x",
    }  # fmt: skip
    assert needs_of(run) == StepNeeds(
        nodes=2, procs=8, cores_per_task=4, gpus=1, gpus_per_task=2, walltime_s=5400, reservation="r",
        more={"bind": "rs", "num resource set": 3, "exit_on_error": 0},
    )  # fmt: skip


def test_empty_values_of_maestro_count_as_absent_and_the_entry_of_the_plugin_is_read():
    run = {
        "nodes": "", "procs": "4", "cores per task": "", "gpus": "", "walltime": "", "reservation": "", "cmd": "",
        "celery": {"settings": {"gpus per task": "1"}},
    }  # fmt: skip
    assert needs_of(run) == StepNeeds(procs=4, gpus_per_task=1)


def test_without_a_key_the_largest_launch_gives_the_resources():
    cmd = "$(LAUNCHER)[1n,4p] a\n$(LAUNCHER)[2n, 2p] b"
    assert needs_of({"cmd": cmd}) == sized(2, 4)
    assert needs_of({"cmd": "a", "restart": cmd, "procs": 8}) == sized(2, 8)


def test_the_variables_of_a_script_give_the_resources():
    cmd = "MERLIN_NODES=2\nMERLIN_PROCS=8\nMERLIN_CORES=3\nMERLIN_GPUS=4\n$(VLAUNCHER) a\nMERLIN_PROCS=2\n$(VLAUNCHER) b"
    assert needs_of({"cmd": cmd}) == sized(2, 8, cores_per_task=3, gpus=4)
    assert needs_of({"cmd": "$(VLAUNCHER) a", "procs": 4}) == sized(1, 4)


def test_a_column_of_the_sample_table_can_be_a_count():
    needs = needs_of({"nodes": 1, "procs": "$(N)", "walltime": "$(T)"})
    assert needs == sized(nodes=1, procs=1)
    assert with_launcher("$(LAUNCHER) a", "slurm", {"procs": "$(N)"}) == f"{SRUN} -n $(N) {FEWEST_NODES} a"


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ({"nodes": "four"}, "nodes: found 'four'; a number is needed"),
        ({"gpus per task": "1.5"}, "gpus per task: found '1.5'; a number is needed"),
        ({"walltime": "soon"}, "walltime: found 'soon'; HH:MM:SS or a number of seconds is needed"),
    ],
)
def test_a_value_that_is_not_a_number_is_refused(run, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        needs_of(run)


def test_a_script_count_keeps_its_text():
    count = ScriptCount(4, "${N}")
    for same in (count, copy.deepcopy(count), pickle.loads(pickle.dumps(count))):
        assert (same, str(same), f"{same}") == (4, "${N}", "${N}")


# --- the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("$(LAUNCHER) ./a", f"{SRUN} -n 8 -N 2 ./a"),
        ("$(LAUNCHER)[1n,4p] ./a", f"{SRUN} -n 4 -N 1 ./a"),
        ("$(LAUNCHER)[1n, 4p] ./a", f"{SRUN} -n 4 -N 1 ./a"),
        ("$(LAUNCHER)[4p,1n] ./a", f"{SRUN} -n 4 -N 1 ./a"),
        ("$(LAUNCHER)[4p] ./a", f"{SRUN} -n 4 {FEWEST_NODES} ./a"),
        ("$(LAUNCHER)[1, 4] ./a", f"{SRUN} -n 4 -N 1 ./a"),
        ("$(LAUNCHER)[1,4]\t./a", f"{SRUN} -n 4 -N 1\t./a"),
        ("$(LAUNCHER)[$(P)p] ./a", f"{SRUN} -n $(P) {FEWEST_NODES} ./a"),
        ("$(LAUNCHER)[2p] a\n$(LAUNCHER) b", f"{SRUN} -n 2 {FEWEST_NODES} a\n{SRUN} -n 8 -N 2 b"),
        ("$(LAUNCHER) [ -f x ]", f"{SRUN} -n 8 -N 2 [ -f x ]"),
        ("no launcher $(X)[2n]", "no launcher $(X)[2n]"),
    ],
)
def test_the_command_line_of_the_batch_system_replaces_the_launcher(text, line):
    assert with_launcher(text, "slurm", STEP) == line
    assert launches(text) == ("LAUNCHER" in text)


def test_the_command_line_has_the_keys_of_the_step():
    run = {
        "procs": "4", "cores per task": 2, "gpus per task": 1, "walltime": "10:00", "reservation": "r",
        "slurm": "--mpi=pmix", "lsf": "--smpiargs=x",
    }  # fmt: skip
    assert with_launcher("$(LAUNCHER) a", "slurm", run) == (
        f"{SRUN} -n 4 {FEWEST_NODES} -c 2 --gpus-per-task=1 -t 00:10:00 --reservation=r --mpi=pmix a"
    )


def test_a_local_step_has_no_launcher():
    assert with_launcher("$(LAUNCHER)[2n,4p] a; $(VLAUNCHER) b", "local", STEP) == "a; b"


def test_the_command_line_refers_to_the_variables_of_the_script():
    text = "MERLIN_NODES=2\nexport MERLIN_PROCS=$(P)\nMERLIN_CORES=1\nMERLIN_GPUS=3\n$(VLAUNCHER) ./a"
    assert with_launcher(text, "slurm", {}).splitlines()[-1] == (
        f"{SRUN} -n ${{MERLIN_PROCS}} -N ${{MERLIN_NODES}} -c ${{MERLIN_CORES}} --gpus=${{MERLIN_GPUS}} ./a"
    )


def test_the_first_lines_set_the_variables_that_the_script_does_not_set():
    """The defaults are those of Merlin: the keys of the step, otherwise 1 node, 1 process, 1 core and no GPU."""
    text = "# MERLIN_PROCS=9\nMERLIN_NODES=2\n$(VLAUNCHER) ./a"
    line = f"{SRUN} -n ${{MERLIN_PROCS}} -N ${{MERLIN_NODES}} -c ${{MERLIN_CORES}} ./a"
    head = "MERLIN_PROCS=4\nMERLIN_CORES=1\nMERLIN_GPUS=0\n"
    assert with_launcher(text, "slurm", {"procs": 4}) == f"{head}# MERLIN_PROCS=9\nMERLIN_NODES=2\n{line}"
    assert with_launcher("$(VLAUNCHER) a", "slurm", {}, "/bin/tcsh").startswith("set MERLIN_NODES=1\nset MERLIN_PROCS=1\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("$(LAUNCHER)[2x] a", "found '$(LAUNCHER)[2x]'; use '[4p]', '[2n,4p]' or '[2, 4]' (nodes, procs)."),
        ("$(LAUNCHER)[] a", "found '$(LAUNCHER)[]'; use '[4p]', '[2n,4p]' or '[2, 4]' (nodes, procs)."),
        ("$(LAUNCHER)[2n] a", "found '$(LAUNCHER)[2n]'; use '[4p]', '[2n,4p]' or '[2, 4]' (nodes, procs)."),
        ("$(LAUNCHER)[1p,2p] a", "found '$(LAUNCHER)[1p,2p]'; use '[4p]', '[2n,4p]' or '[2, 4]' (nodes, procs)."),
        ("$(LAUNCHER)[0p] a", "found '$(LAUNCHER)[0p]'; procs must be at least 1."),
        ("$(LAUNCHER)[3n,4p] a", "found '$(LAUNCHER)[3n,4p]'; the step has nodes: 2; a launch cannot have more."),
        ("$(LAUNCHER)[9p] a", "found '$(LAUNCHER)[9p]'; the step has procs: 8; a launch cannot have more."),
        ("$(LAUNCHER)[1, 9] a", "found '$(LAUNCHER)[1, 9]'; the step has procs: 8; a launch cannot have more."),
    ],
)  # fmt: skip
def test_an_invalid_launch_is_refused(text, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        with_launcher(text, "slurm", STEP)
    with pytest.raises(ValueError, match=f"^restart: {re.escape(sentence)}$"):
        needs_of({**STEP, "cmd": "x", "restart": text})


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        (StepNeeds(), "1 core"),
        (StepNeeds(nodes=2, procs=8, cores_per_task=2), "2 nodes, 8 procs, 2 cores per task"),
        (StepNeeds(procs=4, gpus_per_task=1), "4 procs, 4 GPUs"),
    ],
)
def test_the_resources_have_a_text(needs, text):
    assert needs.text == text


def test_an_unknown_batch_system_is_refused():
    message = "unknown batch type 'pbs'; known types are local, slurm, lsf, lsf-srun, flux."
    with pytest.raises(AllocationError, match=f"^{re.escape(message)}$"):
        with_launcher("$(LAUNCHER) a", "pbs", {})


def test_the_batch_type_of_the_step_has_priority_then_the_group_then_the_study():
    groups = {
        "a": WorkerGroupSettings(task_queues=("qa",), batch={"type": "flux"}),
        "b": WorkerGroupSettings(task_queues=("qb",), batch={"nodes": 2}),
    }
    settings = EnsembleSettings(batch=BatchSettings(type="slurm"), resources=ResourceSettings(workers=groups))
    assert batch_type_of(settings, StepSettings(task_queue="qa", batch={"type": "lsf"})) == "lsf"
    assert batch_type_of(settings, StepSettings(task_queue="qa", batch={"nodes": 1})) == "flux"
    assert batch_type_of(settings, StepSettings(task_queue="qb")) == "slurm"
    assert batch_type_of(settings, StepSettings(task_queue="other")) == "slurm"


# --- slots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "slots"),
    [
        (sized(), 144),
        (sized(nodes=1, procs=36), 4),
        (sized(nodes=1, procs=18), 8),
        (sized(nodes=1), 4),
        (sized(nodes=2), 2),
        (sized(nodes=2, procs=4), 36),
        (sized(nodes=2, procs=36), 4),
        (sized(nodes=2, procs=37), 2),
        (sized(nodes=3, procs=3), 36),
        (sized(nodes=2, cores_per_task=12), 6),
        (sized(nodes=5), 0),
        (sized(nodes=1, procs=37), 0),
        (sized(nodes=2, procs=72), 2),
        (sized(nodes=2, procs=73), 0),
        (sized(nodes=2, procs=4, cores_per_task=19), 0),
        (sized(procs=36), 4),
        (sized(procs=24), 4),
        (sized(procs=8, cores_per_task=2), 8),
        (sized(procs=48), 3),
        (sized(procs=4, cores_per_task=20), 1),
        (sized(procs=144), 1),
        (sized(procs=145), 0),
        (sized(cores_per_task=37), 0),
    ],
)
def test_the_cores_of_four_nodes_limit_the_slots(needs, slots):
    assert slot_count(needs, 4, 36) == slots


@pytest.mark.parametrize(
    ("needs", "slots"),
    [
        (sized(procs=4, gpus_per_task=1), 4),
        (sized(procs=1, gpus=2), 8),
        (sized(procs=1, gpus=5), 0),
        (sized(procs=8, gpus_per_task=1), 2),
        (sized(procs=2), 72),
        (sized(nodes=2, procs=8, gpus_per_task=1), 2),
        (sized(nodes=2, procs=4, gpus=4), 4),
        (sized(nodes=2, procs=4, gpus=9), 0),
    ],
)
def test_the_gpus_of_four_nodes_limit_the_slots(needs, slots):
    assert slot_count(needs, 4, 36, gpus_per_node=4) == slots


@pytest.mark.parametrize(
    ("needs", "slots"), [(sized(nodes=2, procs=4), 2), (sized(nodes=1, procs=18), 8), (sized(nodes=2, procs=73), 0)]
)
def test_samples_on_several_nodes_share_no_nodes_if_the_batch_system_cannot_share_them(needs, slots):
    assert slot_count(needs, 4, 36, shares_nodes=False) == slots


def test_without_a_number_of_gpus_per_node_gpus_do_not_limit_the_slots():
    assert slot_count(sized(procs=1, gpus=5), 4, 36) == 144


@pytest.mark.parametrize(
    ("slots", "workers", "parts"), [(6, 4, [2, 2, 1, 1]), (4, 4, [1, 1, 1, 1]), (2, 3, [1, 1, 0]), (0, 2, [0, 0])]
)
def test_workers_share_the_slots_of_an_allocation(slots, workers, parts):
    assert [worker_slots(slots, workers, number) for number in range(1, workers + 1)] == parts


def test_the_step_with_the_fewest_slots_limits_the_allocation():
    wide, whole = sized(nodes=2, procs=2), sized(nodes=1, procs=36)
    assert fewest_slots([wide, whole, sized()], 4, 36, shares_nodes=True) == (whole, 4)
    assert fewest_slots([wide, whole], 4, 36, shares_nodes=False) == (wide, 2)
    assert fewest_slots([whole, sized(procs=1, gpus=5)], 4, 36, 4, shares_nodes=True) == (sized(procs=1, gpus=5), 0)
    assert fewest_slots([], 4, 36, shares_nodes=True) == (StepNeeds(), 144)


def test_the_gpus_of_a_step_are_planned_as_its_launcher_reserves_them():
    """Given 4 procs and 2 gpus, then `flux run` reserves 8 GPUs, as in Maestro, and `srun` reserves 2."""
    needs = StepNeeds(procs=4, gpus=2)
    for kind, count in (("flux", 8), ("slurm", 2)):
        assert needs.planned(gpus_are_per_process=batch_system(kind).gpus_are_per_process).gpu_count == count
    assert StepNeeds(procs=4, gpus_per_task=1, gpus=2).planned(gpus_are_per_process=True).gpu_count == 4
