"""Studies that grow: samples are added while they run, after their end, and by their own steps."""

from __future__ import annotations

import os
import signal

import pytest
from support import wait_for

from maestro_celery_plugin.study.additions import read_additions
from maestro_celery_plugin.study.plan import StudyPlan

# `sim` notes each run of a sample, `learn` how many results it sees; LEARN is the rest of the script of `learn`.
SPEC = """
    description: {name: growing, description: d}
    study:
      - name: sim
        description: d
        run:
          cmd: |
            echo "run $(X)" >> runs
            SIM
      - name: learn
        description: d
        run:
          cmd: |
            cat $(sim.workspace)/$(MERLIN_GLOB_PATH)runs | wc -l >> seen
            echo $(MERLIN_PATHS_ALL) | wc -w >> paths
            LEARN
          depends: [sim]
      - name: report
        description: d
        run: {cmd: "cat $(learn.workspace)/seen >> reports; echo end >> reports", depends: [learn]}
    merlin:
      resources: {workers: {w: {args: --concurrency 4}}}
      samples:
        generate: {cmd: "seq 1 4 > $(MERLIN_INFO)/x.csv"}
        file: $(MERLIN_INFO)/x.csv
        column_labels: [X]
        MAX
"""


def spec(learn="true", sim="true", more=""):
    return SPEC.replace("LEARN", learn).replace("SIM", sim).replace("MAX", more)


# What `add-samples` says of a conductor that runs; the second sentence if it has not taken the samples after ten seconds.
TAKEN = ("The conductor runs them.", "The conductor takes them within seconds.")


def add(study, *values, options=(), code=0):
    path = study.path.parent / "more.csv"
    path.write_text("".join(f"{value}\n" for value in values))
    answer = study.command("maestro-celery", "add-samples", *options, str(study.path), str(path))
    assert answer.returncode == code, answer.stderr
    return answer.stdout


def runs(study):
    """Return the runs of each sample, by directory."""
    return {path.parent.name: path.read_text().split("\n")[:-1] for path in sorted(study.path.glob("sim/*/runs"))}


def once(values):
    return {f"{index:02d}": [f"run {value}"] for index, value in enumerate(values)}


def seen(study, step="learn", file="seen"):
    return (study.path / step / file).read_text().split()


ALL_FINISHED = "All step records have finished.\n"
# After `kill_conductor`, which lets the host believe that it has done this, so that the resume of the test comes first.
DIED = "The conductor has died\n    The host of the session has started another one, which went on.\n"


def assert_counts(study, samples, explanation=ALL_FINISHED):
    status = study.status()
    steps = {step["name"]: step for step in status["steps"]}
    assert steps["sim"]["samples"] == {"total": samples, "finished": samples, "failed": 0, "running": 0, "pending": 0}
    assert {step["state"] for step in steps.values()} == {"FINISHED"}
    assert status["waiting_additions"] == 0
    explained = study.command("maestro-celery", "explain", str(study.path))
    assert explained.stdout == explanation


def test_samples_are_added_while_the_sampled_step_runs(run):
    """Given a running step, when samples are added, then they run in it, and no step runs twice."""
    study = run(spec(sim="until test -e $(OUTPUT_PATH)/go; do sleep 0.1; done"))
    study.await_text("sim/*/runs")
    first, second = add(study, 5, 6).splitlines()
    assert first == "Added 2 samples (4 to 5). The study has 6 samples."
    assert second in TAKEN
    wait_for(lambda: study.status()["steps"][0]["samples"]["total"] == 6, "the new samples in the step")
    (study.path / "go").touch()
    study.await_end()

    assert runs(study) == once([1, 2, 3, 4, 5, 6])
    assert seen(study) == ["6"]
    assert seen(study, file="paths") == ["6"]
    assert seen(study, "report", "reports") == ["6", "end"]
    assert_counts(study, 6)


def test_samples_are_added_while_what_depends_on_them_runs(run):
    """Given a step that reads all samples just now, then it ends first, runs again, and what follows runs once."""
    study = run(spec(learn="touch begun; until test -e $(OUTPUT_PATH)/go; do sleep 0.1; done"))
    study.await_text("learn/begun")
    add(study, 5)
    wait_for(lambda: "04" in runs(study), "the new sample")
    steps = {step["name"]: step["state"] for step in study.status()["steps"]}
    assert steps["learn"] == "RUNNING"
    (study.path / "go").touch()
    study.await_end()

    assert runs(study) == once([1, 2, 3, 4, 5])
    assert seen(study) == ["4", "5"]
    assert seen(study, "report", "reports") == ["4", "5", "end"]
    assert_counts(study, 5)


def test_samples_are_added_to_a_study_that_has_ended(run):
    study = run(spec(), foreground=True)
    answer = add(study, 5, 6)
    assert answer.splitlines() == [
        "Added 2 samples (4 to 5). The study has 6 samples.",
        f"The study has no conductor; `maestro-celery resume {study.path}` runs them.",
    ]
    assert "2 added samples wait" in study.command("maestro-celery", "status", str(study.path)).stdout
    assert "2 added samples wait" in study.command("maestro-celery", "explain", str(study.path)).stdout

    again = add(study, 5, 6, options=["--resume"])
    assert again.splitlines()[0] == "An earlier call has added these samples (4 to 5); nothing is added. The study has 6."
    assert again.splitlines()[1:] == [
        "This will run:",
        "  sim: 2 added samples",
        "  learn: 1 step record again because of changed inputs",
        "  report: 1 step record again because of changed inputs",
        "Study resumed.",
    ]
    study.await_end()

    assert runs(study) == once([1, 2, 3, 4, 5, 6])
    assert seen(study) == ["4", "6"]
    assert seen(study, "report", "reports") == ["4", "end", "4", "6", "end"]
    assert_counts(study, 6)


LOOP = """n=$(tail -1 seen)
            if [ $n -lt 10 ]; then seq $((n + 1)) $((n + 2)) > $n.csv; maestro-celery add-samples $n.csv; fi"""


@pytest.mark.parametrize("by", ["workers", "maestro", "throttle"])
def test_a_step_adds_samples_three_times(run, by):
    """Given a step that adds samples until there are 10, then one `maestro run` runs all, and what follows once."""
    options = ["-t", "1"] if by == "throttle" else []
    text = spec(learn=LOOP)
    if by == "maestro":
        text = text.replace("{workers: {w: {args: --concurrency 4}}}", "{unassigned: maestro, workers: {w: {steps: [sim]}}}")
    study = run(text, *options, foreground=True)

    assert study.code == 0, study.output
    assert runs(study) == once(range(1, 11))
    assert seen(study) == ["4", "6", "8", "10"]
    assert seen(study, file="paths") == ["4", "6", "8", "10"]
    assert seen(study, "report", "reports") == ["4", "6", "8", "10", "end"]
    assert_counts(study, 10)


POST = """
    description: {name: post, description: d}
    study:
      - {name: sim, description: d, run: {cmd: "sleep 1; echo $(X) > result"}}
      - name: post
        description: each sample reads its own
        run:
          cmd: |
            cat $(sim.workspace)/$(MERLIN_SAMPLE_PATH)/result >> own
            until test -e $(OUTPUT_PATH)/go; do sleep 0.1; done
          depends: [sim]
      - {name: collect, description: d, run: {cmd: "cat $(post.workspace)/*/own | sort >> all", depends: [post]}}
    merlin:
      resources: {workers: {w: {args: --concurrency 8}}}
      samples:
        generate: {cmd: "seq 1 4 > $(MERLIN_INFO)/x.csv"}
        file: $(MERLIN_INFO)/x.csv
        column_labels: [X]
"""


def test_a_sample_waits_for_the_same_sample_of_the_step_before(run):
    """Given a running step that reads its own sample of another one, then new samples run in the other one first."""
    study = run(POST)
    study.await_text("post/*/own", count=4)
    add(study, 5, 6)
    wait_for(lambda: len(list(study.path.glob("sim/*/result"))) == 6, "the new samples of sim")
    study.await_text("post/*/own", count=6)  # as soon as they can run, although the others have not ended
    (study.path / "go").touch()
    study.await_end()

    assert study.outputs("post/*/own") == [f"{value}\n" for value in range(1, 7)]
    assert study.outputs("collect/all") == ["1\n2\n3\n4\n5\n6\n"]
    assert set(study.states().values()) == {"FINISHED"}


NEIGHBOURS = """
    description: {name: neighbours, description: d}
    study:
      - name: sim
        description: each small sample adds another one
        run:
          cmd: |
            echo "$(X) $(G)" >> runs
            if [ $(X) -lt 20 -a $(G) = a ]; then echo $(( $(X) * 2 )) > m.csv; maestro-celery add-samples m.csv; fi
      - name: post
        description: each sample reads its own
        run: {cmd: "cat $(sim.workspace)/$(MERLIN_SAMPLE_PATH)/runs >> own", depends: [sim]}
      - name: compare
        description: each sample reads all
        run: {cmd: "cat $(sim.workspace)/$(MERLIN_GLOB_PATH)runs | wc -l >> $(X).all", depends: [sim]}
      - name: collect
        description: all
        run: {cmd: "ls -d $(OUTPUT_PATH)/sim/*/*/runs | wc -l >> count", depends: [sim_*]}
    global.parameters:
      G: {values: [a, b], label: G.%%}
    merlin:
      resources: {workers: {w: {args: --concurrency 4}}}
      samples:
        generate: {cmd: "seq 3 2 9 > $(MERLIN_INFO)/x.csv"}
        file: $(MERLIN_INFO)/x.csv
        column_labels: [X]
"""


def test_samples_add_samples(run):
    """Given samples that add others at the same time, then each runs once, and what reads all sees all in the end."""
    study = run(NEIGHBOURS, foreground=True)

    values = sorted([3, 5, 6, 7, 9, 10, 12, 14, 18, 20, 24, 28, 36])
    found = sorted(text.strip() for text in study.outputs("sim/*/*/runs"))
    assert found == sorted(f"{value} {g}" for value in values for g in "ab")
    assert sorted(text.strip() for text in study.outputs("post/*/*/own")) == found
    assert [text.split()[-1] for text in study.outputs("compare/*/*/*.all")] == ["13"] * 26
    assert study.outputs("collect/count")[0].split()[-1] == "26"
    assert set(study.states().values()) == {"FINISHED"}


CHOOSER = """import json, sys
samples = [json.loads(line) for line in sys.stdin]
best = max(sample["values"]["X"] for sample in samples)
assert all(open(sample["directory"] + "/runs").read() == f"run {sample['values']['X']}\\n" for sample in samples)
for value in (best + 1, best + 2, best + 3):
    print(json.dumps({"X": value}))
"""


def test_a_command_chooses_samples_until_max_samples(run, tmp_path):
    """Given a command that always prints three samples, then the loop ends with max_samples: 12."""
    (tmp_path / "choose.py").write_text(CHOOSER)
    learn = f'maestro-celery add-samples --from-command "python3 {tmp_path}/choose.py" >> said'
    study = run(spec(learn=learn, more="max_samples: 12"), foreground=True)

    assert study.code == 0, study.output
    found = sorted(line for path in study.path.glob("sim/*/runs") for line in path.read_text().splitlines())
    assert found == sorted(f"run {value}" for value in range(1, 13))
    said = (study.path / "learn" / "said").read_text().splitlines()
    assert [line for line in said if line.startswith("Added")][-1] == (
        "Added 2 samples (10 to 11); 1 more is left out (merlin.samples.max_samples). The study has 12 samples."
    )
    assert said[-1] == "The study has 12 samples, the largest number (merlin.samples.max_samples); the command does not run."
    assert_counts(study, 12)


def test_a_command_without_output_ends_the_loop(run):
    learn = "maestro-celery add-samples --from-command 'test $(wc -l) -ge 6 || seq 5 6' >> said"
    study = run(spec(learn=learn), foreground=True)

    assert runs(study) == once([1, 2, 3, 4, 5, 6])
    assert seen(study) == ["4", "6"]
    assert (study.path / "learn" / "said").read_text().splitlines()[-1] == "The command has printed no samples; nothing is added."
    assert_counts(study, 6)


def test_a_conductor_killed_right_after_an_addition(run):
    """Given an addition that the conductor has not seen, when it is killed, then a resume runs the new samples."""
    study = run(spec(learn="touch begun; until test -e $(OUTPUT_PATH)/go; do sleep 0.1; done"))
    study.await_text("learn/begun")
    conductors = study.processes("bin/conductor")
    for pid in conductors:
        os.kill(pid, signal.SIGSTOP)
    path = study.path.parent / "more.csv"
    path.write_text("5\n6\n")
    add_without_waiting(study, path)
    study.kill_conductor()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")
    assert read_additions(StudyPlan.read(study.path)).count == 2
    assert runs(study) == once([1, 2, 3, 4])

    (study.path / "go").touch()
    answer = study.command("maestro-celery", "resume", "-fg", str(study.path))
    assert answer.returncode == 0, answer.stderr
    assert "sim: 2 added samples" in answer.stdout
    study.await_end()

    assert runs(study) == once([1, 2, 3, 4, 5, 6])
    assert seen(study)[-1] == "6"
    assert_counts(study, 6, DIED)


def add_without_waiting(study, path):
    """Add samples; the command does not wait for the conductor, which is stopped, because a step could call it."""
    environment = {**study.environment, "MAESTRO_CELERY_STUDY": str(study.path)}
    study.environment, before = environment, study.environment
    try:
        answer = study.command("maestro-celery", "add-samples", str(study.path), str(path))
    finally:
        study.environment = before
    assert answer.returncode == 0, answer.stderr


def test_a_conductor_killed_after_it_has_taken_an_addition(run):
    """Given a step that runs to its end before it runs again, when the conductor is killed, then it runs again."""
    study = run(spec(learn="touch begun; until test -e $(OUTPUT_PATH)/go; do sleep 0.1; done"))
    study.await_text("learn/begun")
    assert add(study, 5).splitlines()[1] in TAKEN
    wait_for(lambda: "04" in runs(study), "the new sample")
    study.kill_conductor()
    (study.path / "go").touch()
    wait_for(lambda: not study.processes("bin/conductor"), "the end of the conductor")

    answer = study.command("maestro-celery", "resume", "-fg", str(study.path))
    assert answer.returncode == 0, answer.stderr
    study.await_end()

    assert runs(study) == once([1, 2, 3, 4, 5])
    assert seen(study)[-1] == "5"
    assert seen(study, "report", "reports")[-2:] == ["5", "end"]
    assert_counts(study, 5, DIED)


@pytest.mark.parametrize("end", ["exit 104", "kill -9 $PPID"], ids=["retry", "worker"])
def test_an_attempt_that_is_repeated_after_its_addition_does_not_add_twice(run, end):
    """Given a step whose addition differs at each attempt, when it is retried, then it runs on the new samples first."""
    learn = f"""n=$(tail -1 seen)
            if [ $n -lt 6 ]; then echo $((100 + RANDOM)) > m.csv; maestro-celery add-samples m.csv; {end}; fi"""
    study = run(spec(learn=learn))
    study.await_end()

    assert seen(study) == ["4", "5", "6"]
    assert all(len(lines) == 1 for lines in runs(study).values())
    assert_counts(study, 6)


def test_a_step_that_fails_after_its_addition_fails_the_study(run):
    """Given a step that adds a sample and fails, then the new sample runs, and the step does not hide its failure."""
    study = run(spec(learn="echo 5 > m.csv; maestro-celery add-samples m.csv; exit 3"), foreground=True)

    assert study.states() == {"sim": "FINISHED", "learn": "FAILED", "report": "FAILED"}
    assert runs(study) == once([1, 2, 3, 4, 5])
    assert seen(study) == ["4"]


def test_an_addition_outside_of_a_step_names_its_study(run, tmp_path):
    study = run(spec(), foreground=True)
    (tmp_path / "more.csv").write_text("5\n")
    answer = study.command("maestro-celery", "add-samples", "more.csv")
    assert answer.returncode == 1
    assert "No step of a study calls this command; give the directory of the study before the file." in answer.stderr
