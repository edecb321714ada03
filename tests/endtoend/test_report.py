"""The report of a study that has really run."""

from __future__ import annotations

import json
import os

SPEC = """
description: {name: study, description: samples that fail}
batch: {type: local}
study:
  - name: sim
    description: a sample fails if X is 3
    run:
      cmd: |
        echo "$TOKEN: $(X)" >&2
        test $(X) -ne 3
merlin:
  resources: {workers: {sims: {args: --concurrency 2}}}
  samples:
    generate: {cmd: 'printf "1\\\\n2\\\\n3\\\\n4\\\\n" > $(MERLIN_INFO)/samples.csv'}
    file: $(MERLIN_INFO)/samples.csv
    column_labels: [X]
"""


def test_the_report_of_a_study_knows_its_machine_and_no_secret(run, tmp_path):
    """Given a study with a failed sample, which writes a value of --env-file to its stderr."""
    (tmp_path / "secrets").write_text("TOKEN=correct-horse-battery\n")
    study = run(SPEC, "--env-file", str(tmp_path / "secrets"), foreground=True)
    study.await_end()

    answer = study.command("maestro-celery", "report", str(study.path))
    assert answer.returncode == 0, answer.stderr
    found = json.loads(study.command("maestro-celery", "report", "--json", str(study.path)).stdout)

    assert [node["name"] for node in found["nodes"]] == [os.environ.get("SLURMD_NODENAME", os.uname().nodename)]
    assert sum(found["slot_time"].values()) > 0
    assert found["columns"][0]["label"] == "X"
    assert [(kind["samples"], kind["values"]) for kind in found["failures"]] == [(1, {"X": "3"})]
    assert found["failures"][0]["stderr"] == "[value of --env-file]: 3"
    assert set(found["versions"]) == {"maestro-celery-plugin", "maestrowf", "celery", "Python"}
    assert "unknown" not in found["versions"]["celery"]
    page = (study.path / "report.html").read_text()
    assert "correct-horse-battery" not in page + json.dumps(found)
    assert "X = 3" in page
