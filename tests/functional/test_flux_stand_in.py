"""The stand-in for Flux gives the answers that a real Flux has given (`recordings/flux`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from fakes.clusters import FakeCluster
from recorded import RECORDINGS
from support import wait_for

FORMAT = "{id.f58}|{status}|{exception.type}|{returncode}|{exception.note}"
OPEN = "import flux; handle = flux.Flux(); "
SUBMIT = "job = flux.job.submit(handle, flux.job.JobspecV1.from_command(['true'], queue={!r})); "
COMMANDS = {
    "getattr-unknown": "getattr nosuch",
    "timeleft-outside": "job timeleft",
    "jobs-unknown-id": f"jobs -a -n -o {FORMAT} ƒ2XmYisvW",
    "jobs-garbage-id": f"jobs -a -n -o {FORMAT} nojob",
    "exec-no-rank": "exec --noinput --rank=0-9 true",
    "run-N-gt-n": "run -q pbatch -N 2 -n 1 true",
    "run-gpus-none": "run -q pbatch -n 1 -g 1 true",
    "run-too-many-nodes": "run -q pbatch -N 9 true",
    "run-too-many-procs": "run -q pbatch -n 99 true",
}
PROGRAMS = {
    "submit-bad-queue": OPEN + SUBMIT.format("nosuch"),
    "cancel-inactive-python": f"{OPEN}{SUBMIT.format('pbatch')}from support import wait_for\n"
    "wait_for(lambda: flux.job.cluster.read(int(job)).state == 'ended', 'the end of the job')\n"
    "flux.job.cancel(handle, job)",
}


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    with FakeCluster(tmp_path_factory.mktemp("flux") / "cluster", "flux", nodes=4, cores=2) as simulated:
        yield simulated


def answer_of(flux, *words):
    environment = flux.insert_into({name: value for name, value in os.environ.items() if name != "FLUX_URI"})
    environment["PYTHONPATH"] += f":{RECORDINGS.parent}"
    return subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )  # fmt: skip


def recorded_end(name):
    """Return the last line of the recorded answer, and the exit code."""
    *_, last, code = (RECORDINGS / "flux" / f"{name}.txt").read_text().splitlines()
    return plain(last), int(re.sub(r"\D", "", code))


def plain(line):
    """Return a line without times, names of jobs, paths of sockets and the class of an exception."""
    line = re.sub(r"^[\d.]+s: |socket \S+ ", "", line)
    return re.sub(r"ƒ\w+", "ƒ", re.sub(r"^\w+Error: ", "", line))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_recorded_answer(flux, name):
    answer = answer_of(flux, "flux", *COMMANDS[name].split())
    assert (plain(answer.stdout.splitlines()[-1]), answer.returncode) == recorded_end(name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_call_in_python_has_the_recorded_error(flux, name):
    answer = answer_of(flux, sys.executable, "-c", PROGRAMS[name])
    assert (plain(answer.stdout.splitlines()[-1]), answer.returncode) == recorded_end(name)


def test_a_flux_that_is_away_has_the_recorded_answers(flux):
    flux.go_away()
    answers = {
        "jobs-uri-refused": answer_of(flux, "flux", "jobs", "-a", "-n", "-o", FORMAT),
        "getattr-uri-refused": answer_of(flux, "flux", "getattr", "size"),
        "python-open-refused": answer_of(flux, sys.executable, "-c", OPEN),
    }
    flux.come_back()
    ends = {name: (plain(one.stdout.splitlines()[-1]), one.returncode) for name, one in answers.items()}
    assert ends == {name: recorded_end(name) for name in answers}


def test_a_job_that_can_never_start_is_accepted_and_ends_as_recorded(flux):
    """Given a job for nine nodes of four, then it has a number, and an exception with the recorded note."""
    submit = "job = flux.job.submit(handle, flux.job.JobspecV1.from_command(['true'], 9, num_nodes=9, exclusive=True)); print(job.f58)"
    answer = answer_of(flux, sys.executable, "-c", OPEN + submit)
    job = answer.stdout.strip()
    assert answer.returncode == 0

    def listed():
        return answer_of(flux, "flux", "jobs", "-n", "-o", FORMAT, job).stdout.strip()

    wait_for(lambda: listed().split("|")[1] != "SCHED", "the end of the job")
    assert listed() == f"{job}|FAILED|alloc|1|unsatisfiable request: need 9 exclusive node(s), only 4 eligible"
