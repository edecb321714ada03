"""An extension in a real study: its hook runs in the worker, and what it prints is in the log of the worker at once."""

from __future__ import annotations

EXTENSION = """
from maestro_celery_plugin import hookimpl

@hookimpl
def attempt_finished(attempt):
    print(f"{attempt.record}: sample {attempt.sample} ended with {attempt.code}")
"""
# The second sample waits for the line about the first one.
SPEC = """
    description: {name: study, description: d}
    study:
      - name: sim
        description: d
        run:
          cmd: |
            [ $(X) = 1 ] || timeout 200 sh -c \
                'until grep -q "sample 0 ended with 0" $MAESTRO_CELERY_STUDY/merlin_info/workers/*.log; do sleep 0.05; done'
    merlin:
      resources: {workers: {w: {args: --concurrency 1, steps: [sim]}}}
      samples: {generate: {cmd: "seq 2 > $(MERLIN_INFO)/x.csv"}, file: $(MERLIN_INFO)/x.csv, column_labels: [X]}
"""


def test_what_a_hook_prints_is_in_the_log_of_the_worker_at_once(run, environment, tmp_path):
    """Given an extension that prints a line for each attempt, when a sample ends, then its line can be read while the next one runs."""
    (tmp_path / "noisy.py").write_text(EXTENSION)
    (tmp_path / "noisy-1.0.dist-info").mkdir()
    (tmp_path / "noisy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (tmp_path / "noisy-1.0.dist-info" / "entry_points.txt").write_text("[maestro_celery]\nnoisy = noisy\n")
    environment["PYTHONPATH"] = str(tmp_path)

    study = run(SPEC, "-s", "1").await_end()

    assert study.states() == {"sim": "FINISHED"}, study.output + study.log()
    [log] = (study.path / "merlin_info" / "workers").glob("*.log")
    assert [line for line in log.read_text().splitlines() if line.startswith("sim: ")] == [
        "sim: sample 0 ended with 0",
        "sim: sample 1 ended with 0",
    ]
