"""Studies that samples and steps start: they join the session, and go on when the sample that has started them ends."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from support import Study, kill, wait_for

from maestro_celery_plugin.host.conductors import RESTART_LIMIT
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import CANCEL_REQUEST

# A step that counts up to MAX, and starts the study again until then. The samples of iteration HELD wait for a file.
ITERATE = """
    description: {name: chain, description: d}
    env: {variables: {ITER: 1, MAX: 3, ARGS: --concurrency 2, OPTIONS: --quiet, SLEEP: 0, HELD: 0}}
    study:
      - name: sim
        description: d
        run: {cmd: "echo $(X) $(ITER) > sim.txt; until [ $(ITER) != $(HELD) ] || [ -e $(SPECROOT)/go ]; do sleep 0.1; done; sleep $(SLEEP)", task_queue: q}
      - name: next
        description: d
        run:
          depends: [sim_*]
          task_queue: q
          cmd: |
            if [ $(ITER) -lt $(MAX) ]; then
                echo before
                maestro run $(SPECROOT)/study.yaml --vars ITER=$(( $(ITER) + 1 )) -o $(OUTPUT_PATH)/../iteration $(OPTIONS)
                echo code $?
            fi
    merlin:
      resources: {workers: {w: {args: $(ARGS), steps: [all]}}}
      samples: {file: samples.csv, column_labels: [X], generate: {cmd: "seq 4 > samples.csv"}}
"""


def iterations(study: Study) -> list[Study]:
    return study.iterations()


def await_session(study: Study) -> None:
    study.await_session()


def processes(study: Study) -> dict[int, str]:
    return Study(study.path.parent, study.environment).processes()


def held(study: Study) -> Study:
    """Wait until samples of the second study of a session wait, and return this study."""
    wait_for(lambda: iterations(study) and iterations(study)[0].outputs("sim/*/sim.txt"), "samples of iteration 2")
    return iterations(study)[0]


def release_samples(study: Study) -> None:
    (study.path.parent / "go").touch()


def workers(study: Study) -> list[str]:
    """Return the names of all workers that the session has had, from their logs."""
    return sorted(path.stem for path in (study.path / "merlin_info" / "workers").glob("*.log"))


@pytest.fixture
def chain(run):
    """Run the chain of studies; kill the remaining processes after the test."""
    studies: list[Study] = []

    def start(*options: str, spec: str = ITERATE, foreground: bool = False) -> Study:
        study = run(spec, "-s", "1", *options, foreground=foreground)
        assert study.code == 0, study.output
        studies.append(study)
        return study

    yield start
    for study in studies:
        kill(*processes(study))


def assert_complete(study: Study, iteration: int, samples: int = 4) -> None:
    outputs = [text.split() for text in study.outputs("sim/*/sim.txt")]
    assert sorted(outputs) == [[str(sample), str(iteration)] for sample in range(1, samples + 1)]
    assert set(study.states().values()) == {"FINISHED"}


def test_a_chain_of_studies_shares_workers_and_ends_by_itself(chain):
    """Given a step that runs the study again, then each iteration is complete, quiet, and beside the first study."""
    study = chain()
    await_session(study)
    found = iterations(study)

    assert [one.path.name for one in found] == ["iteration", "iteration_2"]
    for number, one in enumerate([study, *found], 1):
        assert_complete(one, number)
        assert one.outputs("next/next.out") == (["before\ncode 0\n"] if number < 3 else [])
        assert not one.outputs("next/next.err")
    assert workers(study) == ["w-1"]
    shown = json.loads(study.command("maestro-celery", "session", "show", "--json", str(found[0].path)).stdout)
    assert [(one["variables"], one["state"], one["started_by"]) for one in shown] == [
        ({}, "FINISHED", None), ({"ITER": "2"}, "FINISHED", "next"), ({"ITER": "3"}, "FINISHED", "next"),
    ]  # fmt: skip


def test_a_script_waits_for_all_studies_of_a_session(chain):
    """Given a chain of three studies, then `session wait` returns after the last one, with the highest code of all."""
    study = chain("--vars", "HELD=2")
    answer = study.command("maestro-celery", "session", "wait", "--timeout", "0", str(study.path))
    assert (answer.returncode, answer.stdout) == (124, "") and "still run after 0 s" in answer.stderr
    release_samples(study)
    answer = study.command("maestro-celery", "session", "wait", str(study.path))
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert [one.path.name for one in iterations(study)] == ["iteration", "iteration_2"]
    assert_complete(iterations(study)[1], 3)


def test_a_script_sees_that_a_study_of_a_session_has_failed(chain):
    """Given a second study whose step fails, then `session wait` says which one, and has the code of a failure."""
    failing = ITERATE.replace("if [ ", "[ $(ITER) = 1 ] || exit 3; if [ ", 1)
    study = chain("--vars", "MAX=3", spec=failing)
    answer = study.command("maestro-celery", "session", "wait", str(study.path))
    assert answer.returncode == 1
    assert answer.stderr == f"{iterations(study)[0].path}: FAILED\n"


def test_a_group_with_other_options_is_another_group(chain):
    """Given a study that changes the options of the group, then its samples run in workers of its own."""
    study = chain("--vars", "OPTIONS=--vars ARGS='--concurrency 1'", "MAX=2")
    await_session(study)
    (other,) = iterations(study)

    assert_complete(other, 2)
    assert workers(study) == ["w-1", "w_2-1"]


def test_relative_paths_are_those_of_the_first_launch(chain):
    """Given samples that start the same study at the same time, then its directories are numbered, none in a sample."""
    spec = ITERATE.replace("-o $(OUTPUT_PATH)/../iteration", "").replace("maestro run", "cd /; maestro run")
    study = chain("--vars", "MAX=3", "OPTIONS=& maestro run $(SPECROOT)/study.yaml --vars ITER=3; wait", spec=spec)
    await_session(study)
    found = iterations(study)
    assert len(found) == 4  # iteration 2 starts two of its own
    assert {one.path.parent for one in found} == {study.path.parent}
    assert all(set(one.states().values()) == {"FINISHED"} for one in found)


def test_a_conductor_that_dies_is_started_again_once(chain):
    """Given a killed conductor of an iteration, then the host of the session lets the study go on."""
    study = chain("--vars", "HELD=2", "MAX=2")
    second = held(study)
    killed = set(second.processes("bin/conductor"))
    kill(*killed)
    wait_for(lambda: set(second.processes("bin/conductor")) - killed, "the other conductor")
    release_samples(study)
    lines = [line for pid, line in second.processes("bin/conductor").items() if pid not in killed]
    assert all(" -t 1 " in line for line in lines)  # as launched
    await_session(study)

    assert_complete(second, 2)
    assert (study.path / "merlin_info/session/host.log").read_text().count("has died; another one goes on") == 1
    assert [member.restarts for member in Members(study.path / "merlin_info/session").all()] == [0, 1]


def test_a_request_to_cancel_outlives_a_conductor_that_dies_before_it_reads_it(chain):
    """Given `maestro cancel` just before the conductor of an iteration dies, then the host cancels its study, and does not let
    it go on: what the sample and the step after it would write does not appear."""
    study = chain("--vars", "HELD=2", "MAX=3")
    second = held(study)
    conductors = second.processes("bin/conductor")
    for pid in conductors:
        os.kill(pid, signal.SIGSTOP)
    (second.path / CANCEL_REQUEST).touch()  # as `maestro cancel` does while the conductor lives
    kill(*conductors)
    await_session(study)

    assert not processes(study)
    assert len(iterations(study)) == 1
    log = (study.path / "merlin_info/session/host.log").read_text()
    assert "has died before it has cancelled the study, which is done now." in log
    assert "another one goes on" not in log


def test_a_host_that_dies_is_replaced(chain):
    """Given a killed host and its broker, when a conductor lives, then it starts another host."""
    study = chain("--vars", "HELD=2", "MAX=2")
    held(study)
    kill(*study.processes("maestro_celery_plugin.host"), *study.server())
    release_samples(study)
    await_session(study)
    assert_complete(iterations(study)[0], 2)


def test_a_session_without_host_and_conductors_is_resumed(chain):
    """Given that host and conductor are killed, then `session resume` lets all go on."""
    study = chain("--vars", "HELD=2", "MAX=3")
    second = held(study)
    kill(*study.processes("maestro_celery_plugin.host"), *second.processes("bin/conductor"), *study.server())

    answer = study.command("maestro-celery", "session", "resume", str(second.path))
    release_samples(study)
    assert "The host of the session runs" in answer.stdout, answer.stderr
    await_session(study)
    for number, one in enumerate([study, *iterations(study)], 1):
        assert_complete(one, number)


def test_a_conductor_that_dies_again_is_started_by_session_resume(chain):
    """Given a conductor that was killed twice, while the host lives, then `session resume` lets its study go on."""
    study = chain("--vars", "HELD=2", "MAX=2")
    second = held(study)
    members = Members(study.path / "merlin_info" / "session")
    members.change(members.all()[1].id, restarts=RESTART_LIMIT)  # as after the first death
    kill(*second.processes("bin/conductor"))
    wait_for(lambda: not second.processes("bin/conductor"), "the end of the conductor")
    assert study.processes("maestro_celery_plugin.host")

    answer = study.command("maestro-celery", "session", "resume", str(second.path))
    release_samples(study)
    assert answer.stdout.startswith("The host of the session runs already, and goes on"), answer.stderr
    await_session(study)
    assert_complete(second, 2)


def test_a_runaway_is_stopped_from_another_shell(chain):
    study = chain("--vars", "MAX=1000", "SLEEP=0.2")
    wait_for(lambda: len(iterations(study)) > 2, "some iterations")
    answer = study.command("maestro-celery", "session", "stop", "-f", str(study.path))
    assert (answer.returncode, "The session is stopped." in answer.stdout) == (0, True), answer.stdout + answer.stderr
    assert not processes(study)
    count = len(iterations(study))
    time.sleep(1)
    assert len(iterations(study)) == count
    resumed = study.command("maestro-celery", "session", "resume", str(study.path))
    assert (resumed.returncode, resumed.stdout[:42]) == (0, "All studies of the session have ended; `ma")
    assert not processes(study)


@pytest.mark.parametrize("limit", [("--max-depth", "1"), ("--max-studies", "2")])
def test_a_runaway_stops_at_a_limit(chain, limit):
    study = chain(*limit, "--vars", "MAX=1000")
    await_session(study)
    (second,) = iterations(study)
    (error,) = second.outputs("next/next.err")
    assert error.startswith(f"maestro: error: {limit[0]}: ")
    assert len(error.splitlines()) == 1
    assert second.outputs("next/next.out") == ["before\ncode 1\n"]


def test_a_step_may_wait_for_its_study_if_a_slot_is_left(chain):
    """Given `-fg` in a step, then it waits for the study; with one slot, it says that it would wait for ever."""
    study = chain("--vars", "OPTIONS=-fg; ls $(OUTPUT_PATH)/../iteration/next", "MAX=2")
    await_session(study)
    assert study.outputs("next/next.out") == ["before\nnext.sh\ncode 0\n"]

    other = chain("--vars", "OPTIONS=-fg", "MAX=2", "ARGS=--concurrency 1")
    await_session(other)
    (error,) = other.outputs("next/next.err")
    assert "would hold all its slots (1)" in error
    assert not iterations(other)


def test_the_cancellation_of_a_study_leaves_its_relatives_alone(chain):
    """Given a step that goes on after it has started a study, when its study is cancelled, then the other one goes on."""
    study = chain("--vars", "OPTIONS=; sleep 600", "MAX=2", "HELD=2")
    held(study)
    assert study.command("maestro", "cancel", "-y", str(study.path)).returncode == 0
    release_samples(study)
    await_session(study)
    assert study.states()["next"] == "CANCELLED"
    assert_complete(iterations(study)[0], 2)


def test_a_study_without_an_ensemble_is_a_member_as_well(chain, tmp_path):
    (tmp_path / "plain.yaml").write_text(
        "description: {name: plain, description: d}\n"
        "study:\n  - {name: a, description: d, run: {cmd: 'sleep 2; echo done > done.txt'}}\n"
    )
    spec = ITERATE.replace("$(SPECROOT)/study.yaml --vars ITER=$(( $(ITER) + 1 ))", "$(SPECROOT)/plain.yaml")
    study = chain("--vars", "MAX=2", spec=spec)
    await_session(study)
    (plain,) = iterations(study)
    assert plain.outputs("a/done.txt") == ["done\n"]


def test_native_steps_start_studies_as_well(chain):
    """Given a study whose steps Maestro runs itself, then a study that one of them starts runs to its end."""
    spec = """
        description: {name: native, description: d}
        env: {variables: {ITER: 1}}
        study:
          - name: a
            description: d
            run:
              cmd: |
                test $(ITER) = 2 || maestro run $(SPECROOT)/study.yaml --vars ITER=2 -o $(OUTPUT_PATH)_2
                echo $(ITER) > a.txt
        merlin: {resources: {unassigned: maestro}}
    """
    study = chain(spec=spec)
    await_session(study)
    (second,) = iterations(study)
    assert (study.outputs("a/a.txt"), second.outputs("a/a.txt")) == (["1\n"], ["2\n"])
    assert second.states() == {"a": "FINISHED"}


def test_a_user_may_share_the_workers_of_a_study_on_purpose(chain):
    """Given a study that runs, then `--session` lets another one use its workers; after its end, it is refused."""
    study = chain("--vars", "MAX=1", "HELD=1")
    study.await_text("sim/*/sim.txt", "1")
    shared = Study(study.path.parent / "other", study.environment)
    command = ("maestro", "run", "-y", "-o", str(shared.path), "--session", str(study.path))
    words = (*command, "--vars", "MAX=1", "ITER=7", "--", str(study.path.parent / "study.yaml"))
    answer = study.command(*words)
    release_samples(study)
    assert (answer.returncode, "Study launched successfully." in answer.stdout) == (0, True), answer.stdout + answer.stderr
    await_session(study)
    assert_complete(study, 1)
    assert_complete(shared, 7)
    assert workers(study) == ["w-1"]
    refused = study.command(*words)
    assert refused.stderr.endswith("runs; leave the option out.\n"), refused.stderr


def test_a_study_never_replaces_a_directory_and_a_dry_run_joins_no_session(chain, tmp_path):
    """Given `-o` of a directory that exists and is no study, then it stays, and a number follows the name."""
    (tmp_path / "iteration").mkdir()
    (tmp_path / "iteration" / "kept").touch()
    other = "maestro run --dry $(SPECROOT)/study.yaml -o dry; cd /;"
    study = chain("--vars", "MAX=2", "OPTIONS=-y", spec=ITERATE.replace("echo before", other))
    study.await_session()
    (second,) = study.iterations()

    assert second.path == tmp_path / "iteration_2"
    assert os.listdir(tmp_path / "iteration") == ["kept"]
    assert (tmp_path / "dry" / "sim").is_dir()
    shown = json.loads(study.command("maestro-celery", "session", "show", "--json", str(study.path)).stdout)
    assert [one["started_by"] for one in shown] == [None, "next"]  # although the step has left its directory


LAUNCHING = ITERATE.replace("seq 4 >", "sleep $(PAUSE); seq 4 >").replace("SLEEP: 0", "SLEEP: 0, PAUSE: 0")


def test_a_launch_that_is_stopped_was_not_launched(chain):
    study = chain("--vars", "MAX=2", "OPTIONS=--vars PAUSE=600", spec=LAUNCHING)
    wait_for(lambda: iterations(study) and iterations(study)[0].processes("cmd.sh"), "the launch of iteration 2")
    answer = study.command("maestro-celery", "session", "stop", "-f", str(study.path))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    shown = json.loads(study.command("maestro-celery", "session", "show", "--json", str(study.path)).stdout)
    assert [one["state"] for one in shown] == ["CANCELLED", "not launched"]
    await_session(study)


def test_a_step_that_runs_again_does_not_start_its_study_again(chain):
    """Given a worker that dies after its step has started a study, then the second attempt says so, and one chain runs."""
    study = chain("--vars", "MAX=2", "HELD=2", "OPTIONS=; test -e once || { touch once; sleep 600; }")
    held(study)
    # The samples of the second study may run before the command in the step, which has launched it, has ended.
    wait_for((study.path / "next" / "once").exists, "the end of the launch")
    kill(*study.processes("maestro_celery_plugin.worker"))
    release_samples(study)
    await_session(study)

    (second,) = iterations(study)
    assert_complete(study, 1)
    assert_complete(second, 2)
    (text,) = study.outputs("next/next.err")
    assert f"maestro: An earlier attempt of this sample has started '{second.path}'; it is not started again.\n" in text


def test_a_version_of_the_specification_has_the_place_of_the_user_s_file(chain, tmp_path):
    """Given a study that starts its own copy again, then `$(SPECROOT)` stays, and a later edit of the file has no effect."""
    (tmp_path / "value").write_text("7\n")
    cmd = "cp $(SPECROOT)/value value; echo '# edited' >> $(SPECROOT)/study.yaml; echo before"
    spec = ITERATE.replace("$(SPECROOT)/study.yaml", "$(MERLIN_SPEC_ORIGINAL_TEMPLATE)").replace("echo before", cmd)
    study = chain(spec=spec)
    await_session(study)
    second, third = iterations(study)
    assert_complete(third, 3)
    assert second.outputs("next/value") == ["7\n"]
    versions = [one.outputs("merlin_info/study.orig.yaml") for one in (study, second, third)]
    assert versions[0] == versions[1] == versions[2]
