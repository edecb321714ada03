"""Flux: its command lines, and the meaning of its output. The outputs have the form of flux-core's manual pages."""

from __future__ import annotations

import os
import shlex
import time

import pytest
from recorded import RECORDINGS, Recording

from maestro_celery_plugin.batch.base import CurrentAllocation, JobReport
from maestro_celery_plugin.batch.flux import FLUX_ENDS, FLUX_STATES, Flux
from maestro_celery_plugin.config.groups import GroupConfig
from maestro_celery_plugin.config.resources import StepNeeds
from maestro_celery_plugin.config.settings import BatchSettings
from maestro_celery_plugin.errors import AllocationError
from maestro_celery_plugin.plugins import batch_system
from maestro_celery_plugin.spec.launcher import with_launcher
from maestro_celery_plugin.states import AllocationState

FLUX = Flux()
# States and results of JOB STATUS in flux-jobs(1), of several releases, and those of RFC 21.
STATES = """
NEW DEPEND PRIORITY SCHED RUN CLEANUP INACTIVE PENDING RUNNING COMPLETED FAILED CANCELED CANCELLED TIMEOUT
"""
COMMAND = "work --name 'a b' \"$HOME\""
QUOTED = shlex.quote(COMMAND)


def line(nodes=4, **settings):
    return FLUX.worker_line(
        GroupConfig(group="sim", queues=("q",), nodes=nodes, batch=BatchSettings(type="flux", **settings)), COMMAND
    )


def test_flux_is_a_registered_batch_system():
    assert isinstance(batch_system("flux"), Flux)


def test_maestros_adapter_gets_only_keys_that_it_accepts():
    assert FLUX.adapter_arguments(BatchSettings()) == {
        "bank": "", "queue": "", "args": {}, "allocation_args": {}, "launcher_args": {},
    }  # fmt: skip
    given = {
        "bank": "b", "queue": "q", "uri": "u", "version": "0.26.0",
        "args": {"a": 1}, "allocation_args": {"setattr": {"x": 1}}, "launcher_args": {"o": {"y": 1}},
    }  # fmt: skip
    assert FLUX.adapter_arguments(BatchSettings(reservation="r", qos="s", **given)) == given


@pytest.mark.parametrize(
    ("resources", "keys"),
    [
        ((1, 4, 2), {"procs": 1, "cores per task": 4, "gpus": 2}),
        ((2, 6, 4), {"procs": 2, "cores per task": 3, "gpus": 8}),
        ((2, 5, 1), {"procs": 2, "cores per task": 3, "gpus": 2}),
        ((2, 4, None), {}),
        ((2, None, 4), {}),
    ],
)
def test_an_allocation_has_the_gpus_of_its_nodes(resources, keys):
    """Maestro's adapter requests ceil(gpus / nodes) GPUs for each of `procs` slots."""
    assert FLUX.step_keys(*resources) == keys


def test_the_batch_script_is_not_changed():
    assert FLUX.step_keys(2, None, None) == {}
    assert FLUX.adjusted_script("#flux: -q \n") == "#flux: -q \n"


def test_one_worker_starts_on_each_node():
    assert line() == f"flux exec --noinput --rank=0-3 /bin/bash -c {QUOTED}"
    assert line(nodes=1) == f"flux exec --noinput --rank=0 /bin/bash -c {QUOTED}"


def test_the_worker_count_is_the_number_of_nodes_or_one_without_flux_exec():
    for exec_workers, count in ((True, 4), (False, 1)):
        settings = BatchSettings(type="flux", flux_exec_workers=exec_workers)
        assert FLUX.worker_count(GroupConfig(group="sim", queues=("q",), nodes=4, batch=settings)) == count


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"flux_path": "/opt/flux/bin"}, f"/opt/flux/bin/flux exec --noinput --rank=0-3 /bin/bash -c {QUOTED}"),
        ({"shell": "/bin/tcsh -f"}, f"flux exec --noinput --rank=0-3 /bin/tcsh -c {QUOTED}"),
        ({"shell": "/usr/bin/env python3"}, f"flux exec --noinput --rank=0-3 /bin/sh -c {QUOTED}"),
        ({"flux_exec": "flux exec -r 1-3"}, f"flux exec -r 1-3 /bin/bash -c {QUOTED}"),
        ({"flux_exec_workers": False}, COMMAND),
        ({"flux_exec_workers": False, "launch_pre": "module load x;", "launch_args": "-v"}, f"module load x; {COMMAND}"),
        ({"launch_pre": "module load x;", "launch_args": "-v"},
         f"module load x; flux exec --noinput --rank=0-3 -v /bin/bash -c {QUOTED}"),
        ({"worker_launch": "srun -N 4", "launch_args": "--mpi=none", "flux_path": "/f", "flux_start_opts": "-o,-S,x=1"},
         f"srun -N 4 --mpi=none /f/flux start -o,-S,x=1 flux exec --noinput /bin/bash -c {QUOTED}"),
        ({"worker_launch": "srun -N 4", "flux_exec_workers": False}, f"srun -N 4 flux start /bin/bash -c {QUOTED}"),
        ({"worker_launch": "flux proxy x", "launch_args": "-v"}, f"flux proxy x -v flux exec --noinput /bin/bash -c {QUOTED}"),
    ],
)  # fmt: skip
def test_merlins_keys_change_the_launch_of_workers(settings, expected):
    assert line(**settings) == expected


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (StepNeeds(), "-n 1"),
        (StepNeeds(nodes=2), "-n 2 -N 2 --exclusive"),
        (StepNeeds(nodes=2, procs=8, cores_per_task=3, gpus_per_task=1, walltime_s=90), "-n 8 -N 2 -c 3 -g 1 -t 90s"),
        (StepNeeds(procs=4, gpus=2, reservation="r"), "-n 4 -g 2"),
    ],
)
def test_the_launcher_has_the_resources_of_a_sample(needs, words):
    assert FLUX.sample_launcher(needs) == f"flux run {words}"


def test_the_options_of_the_step_follow_the_resources():
    run = {"procs": 2, "flux": "-o mpi=spectrum", "slurm": "--mpi=none"}
    assert with_launcher("$(LAUNCHER) a", "flux", run) == "flux run -n 2 -o mpi=spectrum a"


def record_instance(recorded, owner, size="3\n"):
    recorded.answer("flux", f"{owner}\n", when="security.owner")
    recorded.answer("flux", size, when="size")


def test_an_instance_of_the_user_is_an_allocation(recorded):
    record_instance(recorded, os.getuid())
    environ = {"FLUX_URI": "local:///run/x/local-0", "FLUX_ENCLOSING_ID": "ƒ2oLkTLb"}
    assert FLUX.current_allocation(environ) == CurrentAllocation("ƒ2oLkTLb", 3)
    assert FLUX.current_allocation({"FLUX_URI": "local:///run/x"}) == CurrentAllocation("local:///run/x", 3)


def test_the_system_instance_is_not_an_allocation(recorded):
    record_instance(recorded, os.getuid() + 1)
    assert FLUX.current_allocation({"FLUX_URI": "local:///run/flux/local", "FLUX_JOB_ID": "ƒ2oLkTLb"}) is None


def test_without_an_instance_that_answers_there_is_no_allocation(recorded):
    assert FLUX.current_allocation({}) is None
    assert FLUX.current_allocation({"FLUX_URI": "local:///run/x"}) is None
    recorded.answer("flux", err="flux-getattr: ERROR: Unable to connect to Flux: broker socket not found\n", code=1)
    assert FLUX.current_allocation({"FLUX_URI": "local:///run/x"}) is None


def test_the_end_is_now_plus_the_time_left(recorded):
    recorded.answer("flux", "3540\n", when="timeleft")
    before = time.time()
    end = FLUX.end_time({})
    assert end is not None
    assert before + 3540 <= end <= time.time() + 3540
    recorded.answer("flux", "4294967295\n")
    assert FLUX.end_time({}) is None
    recorded.answer("flux", err="flux-job: ERROR: no such job\n", code=1)
    assert FLUX.end_time({}) is None


def test_flux_reports_neither_cores_nor_the_largest_node():
    assert FLUX.node_cores({"FLUX_URI": "x"}) is None
    assert FLUX.largest_node(BatchSettings()) is None


def test_the_tables_have_every_state_of_the_manual():
    assert set(FLUX_STATES) == set(STATES.split())
    assert set(FLUX_ENDS) == {"node-failure", "preempt", "prolog", "timeout"}


@pytest.mark.parametrize("state", FLUX_STATES)
def test_each_state_of_flux_gives_a_state_of_the_allocation(state, recorded):
    recorded.answer("flux", f"ƒ2oLkTLb|{state}||1|\n")
    assert FLUX.reports(["ƒ2oLkTLb"])["ƒ2oLkTLb"].state is FLUX_STATES[state]


@pytest.mark.parametrize("exception", FLUX_ENDS)
def test_an_exception_gives_the_state_and_the_reason(exception, recorded):
    recorded.answer("flux", f"ƒA|FAILED|{exception}|1|some note\n")
    assert FLUX.reports(["ƒA"]) == {"ƒA": JobReport(FLUX_ENDS[exception], f"{exception}: some note")}


def test_one_call_of_flux_jobs_reports_several_jobs(recorded):
    recorded.answer(
        "flux",
        "ƒA|SCHED|||\nfB|RUN|||\nƒC|COMPLETED||0|\nƒD|FAILED||1|\n"
        "ƒE|CANCELED|cancel|143|no need | of it\nƒF|TIMEOUT|timeout|142|resource allocation expired\n",
        err="JobID ƒG unknown\n",
    )
    assert FLUX.reports(["ƒA", "ƒB", "ƒC", "ƒD", "ƒE", "ƒF", "ƒG"]) == {
        "ƒA": JobReport(AllocationState.PENDING),
        "ƒB": JobReport(AllocationState.RUNNING),
        "ƒC": JobReport(AllocationState.COMPLETED),
        "ƒD": JobReport(AllocationState.FAILED, "exit code 1"),
        "ƒE": JobReport(AllocationState.CANCELLED, "cancel: no need | of it"),
        "ƒF": JobReport(AllocationState.TIMED_OUT, "timeout: resource allocation expired"),
        "ƒG": JobReport(AllocationState.GONE),
    }
    assert recorded.asked("flux") == [
        "jobs", "-n", "-o", "{id.f58}|{status}|{exception.type}|{returncode}|{exception.note}",
        "ƒA", "ƒB", "ƒC", "ƒD", "ƒE", "ƒF", "ƒG",
    ]  # fmt: skip


def test_unknown_jobs_are_gone_although_flux_jobs_fails(recorded):
    recorded.answer("flux", err="JobID ƒG unknown\nJobID ƒH unknown\n", code=1)
    assert FLUX.reports(["ƒG", "ƒH"]) == {job: JobReport(AllocationState.GONE) for job in ("ƒG", "ƒH")}


def test_the_unknown_job_of_a_recording_is_gone(recorded):
    """Given the recorded answer for an unknown job, with a warning and exit code 1, then the job is gone."""
    recorded.replay("flux", "flux/jobs-unknown-id")
    assert FLUX.reports(["ƒ2XmYisvW"]) == {"ƒ2XmYisvW": JobReport(AllocationState.GONE)}


def test_a_known_job_beside_an_unknown_one_is_reported(recorded):
    recorded.replay("flux", "flux/jobs-known-and-unknown-without-a")
    assert FLUX.reports(["ƒ4C4Q1Q1u", "ƒ2XmYisvW"]) == {
        "ƒ4C4Q1Q1u": JobReport(AllocationState.COMPLETED),
        "ƒ2XmYisvW": JobReport(AllocationState.GONE),
    }


def test_a_warning_alone_is_no_answer(recorded):
    recorded.answer("flux", err="flux-jobs: WARNING: Filtering options ignored with jobid list\n", code=1)
    with pytest.raises(AllocationError, match="WARNING"):
        FLUX.reports(["ƒA"])


NEVER = "dependency after-success=ƒ4CQmbXcj job never started"
ENDED = {
    "ƒ4CQmbXcj": JobReport(AllocationState.PREEMPTED, "preempt: made room"),
    "ƒ4CmXRUSj": JobReport(AllocationState.NODE_FAILED, "node-failure: lost node"),
    "ƒ4DNLecGP": JobReport(AllocationState.CANCELLED, "cancel: operator says so"),
    "ƒ4DveaxUF": JobReport(AllocationState.TIMED_OUT, "timeout: resource allocation expired"),
    "ƒ4EV5wF5q": JobReport(AllocationState.FAILED, "exit code 3"),
    "ƒ4F78KnS3": JobReport(AllocationState.FAILED, f"dependency: {NEVER}"),
    "ƒ4FfHNCwq": JobReport(
        AllocationState.FAILED,
        "exec: task 0 (host node1): start failed: nosuchcommand: No such file or directory",
    ),
    "ƒ4GBDRhwd": JobReport(AllocationState.CANCELLED, "cancel"),
    "ƒ4GmZy4h5": JobReport(AllocationState.FAILED, "exit code 137"),
}


def test_the_recorded_ends_of_jobs_have_a_state_and_a_reason(recorded):
    recorded.replay("flux", "flux/jobs-ended")
    assert FLUX.reports(list(ENDED)) == ENDED


def test_a_recorded_job_that_can_never_start_has_ended_by_itself(recorded):
    recorded.replay("flux", "flux/jobs-all-at-end")
    reports = FLUX.reports(["ƒ4bLEFVhZ", "ƒ3kPiaZZ9"])
    assert reports["ƒ4bLEFVhZ"].state is AllocationState.FAILED
    assert reports["ƒ4bLEFVhZ"].reason.startswith("alloc: unsatisfiable request: need 1 node(s) with 4 cores and 8 GPUs")
    assert not reports["ƒ4bLEFVhZ"].waits_forever
    assert reports["ƒ3kPiaZZ9"].state is AllocationState.CANCELLED


def test_recorded_open_jobs_wait(recorded):
    """Given a job that waits for a dependency and a job that is held, then both are pending."""
    recorded.replay("flux", "flux/jobs-open")
    jobs = ["ƒ4F78KnS3", "ƒ4GBDRhwd", "ƒ4CQmbXcj"]
    assert FLUX.reports(jobs) == dict.fromkeys(jobs, JobReport(AllocationState.PENDING))


@pytest.mark.parametrize("name", ["jobs-uri-refused", "jobs-garbage-id"])
def test_a_recorded_error_of_flux_jobs_is_no_end_of_a_job(recorded, name):
    recorded.replay("flux", f"flux/{name}")
    with pytest.raises(AllocationError, match="'flux' has failed: "):
        FLUX.reports(["ƒ2XmYisvW"])


@pytest.mark.parametrize(
    ("name", "is_away"),
    [
        ("jobs-uri-refused", True), ("getattr-uri-refused", True), ("python-open-refused", True),
        ("submit-bad-queue", False), ("cancel-inactive-python", False), ("joblist-unknown-python", False),
        ("run-N-gt-n", False), ("run-too-many-nodes", False), ("getattr-unknown", False),
    ],
)  # fmt: skip
def test_only_a_flux_that_is_away_is_unavailable(name, is_away):
    assert bool(FLUX.unavailable.search(Recording.read(f"flux/{name}").err)) is is_away


@pytest.mark.parametrize(
    "text",
    [
        "[Errno 32] EPIPE: Broken pipe", "[Errno 111] Connection refused", "[Errno 104] Connection reset by peer",
        "[Errno 113] No route to host", "[Errno 38] No service matching job-ingest.submit is registered",
    ],
)  # fmt: skip
def test_an_error_of_the_connection_is_no_refusal(text):
    assert FLUX.unavailable.search(text)


def test_there_is_no_time_limit_outside_of_an_allocation(recorded):
    answer = (RECORDINGS / "flux" / "timeleft-outside.txt").read_text().splitlines()[1]
    recorded.answer("flux", f"{answer}\n")
    assert FLUX.end_time({}) is None


@pytest.mark.parametrize("name", ["getattr-unknown", "getattr-uri-refused"])
def test_a_recorded_error_of_getattr_is_no_allocation(recorded, name):
    recorded.replay("flux", f"flux/{name}")
    assert FLUX.current_allocation({"FLUX_URI": "local:///run/nosuch"}) is None


def test_an_unknown_state_counts_as_running(recorded):
    recorded.answer("flux", "ƒA|LEVITATING|||\n")
    assert FLUX.reports(["ƒA"]) == {"ƒA": JobReport(AllocationState.RUNNING, "LEVITATING")}


def test_a_flux_that_does_not_answer_is_an_error(recorded):
    recorded.answer("flux", err="flux-jobs: ERROR: Unable to connect to Flux\n", code=1)
    with pytest.raises(AllocationError, match=r"^'flux' has failed: flux-jobs: ERROR: Unable to connect to Flux"):
        FLUX.reports(["ƒA"])


def test_each_interface_of_maestro_has_the_connection_that_is_dropped():
    from maestrowf.interfaces.script import FluxFactory

    interfaces = FluxFactory.factories.values()
    assert all("flux_handle" in vars(interface) for interface in interfaces)
    before = [interface.flux_handle for interface in interfaces]
    for interface in interfaces:
        interface.flux_handle = "broken"
    with FLUX.adapter_context():
        assert {interface.flux_handle for interface in interfaces} == {None}
    for interface, handle in zip(interfaces, before, strict=True):
        interface.flux_handle = handle


def test_samples_do_not_see_the_task_of_their_worker():
    task = {"FLUX_TASK_RANK": "1", "FLUX_TASK_LOCAL_ID": "0", "PMI_RANK": "1", "PMI_FD": "5"}
    assert Flux().sample_environment({"FLUX_URI": "u", **task}) == {"FLUX_URI": "u"}
