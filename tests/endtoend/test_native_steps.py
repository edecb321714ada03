"""Native steps, which Maestro runs itself, together with steps of workers in one study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml
from support import WITHOUT_PLUGIN, kill, wait_for

MERLIN = {
    "resources": {"unassigned": "maestro", "workers": {"w": {"args": "--concurrency 2", "idle_limit": 1}}},
    "samples": {
        "generate": {"cmd": "seq 1 4 > $(MERLIN_INFO)/a.csv"},
        "file": "$(MERLIN_INFO)/a.csv",
        "column_labels": ["A"],
    },
}
SIM = "echo sim $(A) >> $(SPECROOT)/ran; echo $(A) > a.txt"
COLLECT = "echo collect >> $(SPECROOT)/ran; cat $(sim.workspace)/$(MERLIN_GLOB_PATH)a.txt"
AGAIN = "echo again $(A) >> $(SPECROOT)/ran"


def spec(**steps: str | dict) -> str:
    """Return a specification of steps (a `cmd` or a `run` block); by default, a step depends on the step before it."""
    study: list[dict] = []
    for name, given in steps.items():
        run = {"cmd": given} if isinstance(given, str) else given
        depends = [study[-1]["name"]] if study else []
        study.append({"name": name, "description": "d", "run": {"depends": depends, **run}})
    description = {"name": "mixed", "description": "d"}
    return yaml.safe_dump({"description": description, "study": study, "merlin": MERLIN}, sort_keys=False)


def ran(study) -> list[str]:
    """Return the lines that the steps have written, in order."""
    return (study.path.parent / "ran").read_text().splitlines()


def workers(study) -> list[Path]:
    return list(study.path.glob("merlin_info/workers/*.log"))


def test_samples_then_a_native_step_then_samples(run):
    """Given a poll of an hour, when steps of both kinds depend on each other, then they run in order, and need no poll."""
    study = run(spec(sim=SIM, collect=COLLECT, again=AGAIN), "-s", "3600").await_end()

    assert study.states() == dict.fromkeys(("sim", "collect", "again"), "FINISHED")
    assert [line.split()[0] for line in ran(study)] == ["sim"] * 4 + ["collect"] + ["again"] * 4
    assert study.outputs("collect/collect.*.out") == ["1\n2\n3\n4\n"]
    status = study.status()
    assert status["state"] == "FINISHED"
    none = dict.fromkeys(("total", "finished", "failed", "running", "pending"), 0)
    assert [step["samples"] for step in status["steps"]] == [none | {"total": 4, "finished": 4}, none, none | {"total": 4, "finished": 4}]
    assert not (study.path / "merlin_info" / "records" / "collect").exists()


def test_maestro_writes_the_script_of_a_native_step(run):
    cmd = "echo $(MERLIN_INFO) $(MERLIN_WORKSPACE) $(MERLIN_HARD_FAIL) $(MERLIN_PATHS_ALL) $(LAUNCHER) $(WORKSPACE)"
    study = run(spec(sim=SIM, tokens=cmd), "--dry", foreground=True)

    root = study.path
    assert study.outputs("tokens/*") == [
        f"#!/bin/bash\n\necho {root}/merlin_info {root} 102 00 01 02 03 $(LAUNCHER) {root}/tokens\n"
    ]
    assert set(study.states().values()) == {"DRYRUN"}


def test_workers_stay_during_a_slow_native_step(run):
    """Given an idle limit of 1 s, when a native step blocks the conductor for 4 s, then the worker stays."""
    study = run(spec(sim=SIM, slow="sleep 4", again=AGAIN), foreground=True)

    assert set(study.states().values()) == {"FINISHED"}
    assert len(workers(study)) == 1


def test_samples_run_while_a_native_step_runs(run):
    """Given a native step that waits for samples of another step, then both steps run at the same time."""
    # Of the steps that become ready at the same time, Maestro runs the last one first (datastructures/dag.py,
    # topological_sort).
    wait = {"cmd": "until test $(grep -c sim $(SPECROOT)/ran) = 4; do sleep 0.1; done", "depends": ["first"]}
    study = run(spec(first="true", wait=wait, sim={"cmd": SIM, "depends": ["first"]}), foreground=True)

    assert set(study.states().values()) == {"FINISHED"}


def test_a_study_with_native_steps_only_needs_neither_broker_nor_workers(run, tmp_path):
    """Given native steps only, then the study has the same files as without the plugin, and uses no broker."""
    data = yaml.safe_load(spec(one="echo 1", two={"cmd": "echo $(P)", "depends": []}, three={"cmd": "echo 3", "depends": ["two_*"]}))
    data["global.parameters"] = {"P": {"values": [1, 2], "label": "P.%%"}}
    del data["merlin"]["samples"]
    study = run(yaml.safe_dump(data), "--broker", "redis://127.0.0.1:1/0", foreground=True)
    del data["merlin"]
    alone = tmp_path / "alone"
    alone.with_suffix(".yaml").write_text(yaml.safe_dump(data))
    subprocess.run(
        [sys.executable, "-c", WITHOUT_PLUGIN, "run", "-y", "-fg", "-s", "1", "-o", str(alone), f"{alone}.yaml"],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip

    def steps(root: Path) -> set[str]:
        files = (path for name in ("one", "two", "three") for path in (root / name).rglob("*"))
        names = {str(path.relative_to(root)) for path in files}
        return {".".join(part for part in name.split(".") if not part.isdigit() or int(part) < 3) for name in names}

    assert set(study.states().values()) == {"FINISHED"}
    assert steps(study.path) == steps(alone)
    assert study.outputs("three/*.sh") == [(alone / "three" / "three.sh").read_text()]
    assert study.status()["state"] == "FINISHED"
    versions = {f"study.{kind}.yaml" for kind in ("orig", "partial", "expanded")}
    found = {path.name for path in (study.path / "merlin_info").iterdir()}
    assert found == {"conductor.lock", "launch.lock", "plain", "session", *versions}


def test_a_failing_native_step_fails_its_dependent_step(run):
    other = {"cmd": "echo other $(A) >> $(SPECROOT)/ran", "depends": []}
    study = run(spec(bad="echo no luck >&2; exit 3", after=AGAIN, other=other), foreground=True)

    assert study.states() == {"bad": "FAILED", "after": "FAILED", "other": "FINISHED"}
    assert study.outputs("bad/bad.*.err") == ["no luck\n"]
    assert study.status()["state"] == "FAILED"


def test_a_shell_and_a_restart_of_a_native_step(run):
    python_step = {"cmd": 'print("from python")', "shell": "python3", "restart": 'print("again")'}
    study = run(spec(sim=SIM, py=python_step), foreground=True)

    assert study.outputs("py/py.*.out") == ["from python\n"]
    assert study.outputs("py/*.sh") == [
        f"#!/usr/bin/env -S python3\n\n{line}\n" for line in ('print("again")', 'print("from python")')
    ]


def test_options_of_maestro_run(run):
    for number, options in enumerate((["--usetmp"], ["--hashws"], ["-t", "1"], ["-a", "2"])):
        study = run(spec(sim=SIM, collect=COLLECT, again=AGAIN), *options, foreground=True, name=f"study{number}")

        assert set(study.states().values()) == {"FINISHED"}, study.output
        assert study.outputs("collect/collect.*.out") == ["1\n2\n3\n4\n"]


def test_cancel_ends_both_kinds(run):
    """Given running samples and a native step, when the study is cancelled, then the samples end after the step."""
    slow = {"cmd": "touch begun; until test -e $(SPECROOT)/go; do sleep 0.1; done", "depends": ["first"]}
    long = {"cmd": "echo $(A) > begun; sleep 300", "depends": ["first"]}
    study = run(spec(first="true", slow=slow, sim=long, after="true"))
    study.await_text("sim/*/begun", count=2)
    study.await_text("slow/begun")  # a step that has not begun when the study is cancelled does not run

    study.command("maestro", "cancel", "-y", str(study.path))
    (study.path.parent / "go").touch()
    study.await_end()

    assert study.states()["sim"] == study.states()["after"] == "CANCELLED"
    assert study.states()["slow"] == "FINISHED"
    assert study.status()["state"] == "CANCELLED"


SLOW = "echo slow >> $(SPECROOT)/ran; until test -e $(SPECROOT)/go; do sleep 0.1; done; echo done >> $(SPECROOT)/ran"


def interrupted(run, *, orphans: bool):
    """Return a study whose conductor was killed during its native step `slow`; `orphans` keeps other processes."""
    study = run(spec(first="echo first >> $(SPECROOT)/ran", sim=SIM, collect=COLLECT, slow=SLOW, again=AGAIN))
    study.await_text("../ran", "slow")
    study.kill_conductor()
    if not orphans:
        kill(*study.processes(), *study.server())
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    return study


def test_a_resumed_study_runs_nothing_twice(run):
    """Given a conductor that was killed during a native step, when the study is resumed, then it waits for that step."""
    study = interrupted(run, orphans=True)
    assert study.status()["state"] == "INTERRUPTED"

    assert study.command("maestro-celery", "resume", str(study.path)).returncode == 0
    wait_for(lambda: len(study.processes("plain/slow/run.sh")) == 2, "the native step in the new conductor")
    (study.path.parent / "go").touch()
    study.await_end()

    assert set(study.states().values()) == {"FINISHED"}
    assert sorted(ran(study)) == sorted(
        ["first", *(f"sim {n}" for n in range(1, 5)), "collect", "slow", "done", *(f"again {n}" for n in range(1, 5))]
    )
    assert len(list(study.path.glob("collect/collect.*.out"))) == 1


def test_a_native_step_that_was_killed_runs_again(run):
    study = interrupted(run, orphans=False)
    (study.path.parent / "go").touch()

    # With a poll of an hour: the conductor does not wait for it after a finished step.
    answer = study.command("maestro-celery", "resume", "-s", "3600", "-fg", str(study.path))

    assert answer.returncode == 0, answer.stderr
    assert set(study.states().values()) == {"FINISHED"}
    assert [line for line in ran(study) if not line.startswith(("sim", "again"))] == ["first", "collect", "slow", "slow", "done"]
    assert len(ran(study)) == 13


def test_only_one_conductor_runs_a_native_step(run):
    study = run(spec(slow=SLOW, sim=SIM))
    study.await_text("../ran", "slow")

    assert study.status()["state"] == "RUNNING"
    answer = study.command("maestro-celery", "resume", str(study.path))
    (study.path.parent / "go").touch()
    study.await_end()

    assert answer.returncode == 1
    assert f"A conductor of the study '{study.path}' is running or starting" in answer.stderr
    assert ran(study)[:2] == ["slow", "done"]


def test_a_finished_study_resumed_runs_nothing(run):
    study = run(spec(sim=SIM, collect=COLLECT), foreground=True)
    before = ran(study)

    answers = [study.command("maestro-celery", "resume", *options, str(study.path)) for options in ((), ("-fg",))]

    assert [(answer.returncode, answer.stdout) for answer in answers] == [(0, "Nothing remains to run.\n")] * 2
    assert not study.processes("conductor")
    assert ran(study) == before
    assert set(study.states().values()) == {"FINISHED"}


def test_a_worker_key_in_a_native_step_stops_the_launch(run):
    study = run(spec(sim=SIM, collect={"cmd": "echo", "max_retries": 2}))

    assert study.code == 1
    assert "study.yaml: study.collect.run.max_retries: Maestro runs this step itself" in study.output
    assert not study.path.exists()
