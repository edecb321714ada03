"""Schema: what does not fit is said in one sentence, with what was found and what is allowed."""

import pytest

from maestro_celery_plugin.config import problems, schema
from maestro_celery_plugin.config.settings import BatchSettings, ResourceSettings, SampleSettings, StepSettings

SAMPLES = {"file": "x.csv", "column_labels": ["A"]}


def first_problem(block, data):
    return next(iter(problems.problems(data, schema.json_schema(block))), None)


@pytest.mark.parametrize(
    ("block", "data", "where", "sentence"),
    [
        (SampleSettings, {**SAMPLES, "fil": 1}, "", "unknown key 'fil'; did you mean 'file'?"),
        (SampleSettings, {**SAMPLES, "qqqq": 1}, "", "unknown key 'qqqq'; known: 'column_labels', 'file', 'generate', "
         "'level_max_dirs'."),
        (SampleSettings, {"column_labels": ["A"]}, "", "the key 'file' is missing; add it."),
        (SampleSettings, {**SAMPLES, "column_labels": []}, "column_labels",
         "found an empty list; at least one entry is needed"),
        (SampleSettings, {**SAMPLES, "column_labels": "A"}, "column_labels", "found 'A'; a list is needed"),
        (SampleSettings, {**SAMPLES, "column_labels": [1]}, "column_labels.0", "found '1'; text is needed"),
        (SampleSettings, {**SAMPLES, "level_max_dirs": "ten"}, "level_max_dirs", "found 'ten'; an integer"),
        (SampleSettings, {**SAMPLES, "level_max_dirs": 2.5}, "level_max_dirs", "found '2.5'; an integer"),
        (SampleSettings, {**SAMPLES, "level_max_dirs": 25.0}, "level_max_dirs", "found '25.0'; an integer"),
        (SampleSettings, {**SAMPLES, "level_max_dirs": True}, "level_max_dirs", "found 'True'; an integer"),
        (SampleSettings, {**SAMPLES, "level_max_dirs": 1}, "level_max_dirs", "found '1'; an integer of at least 2"),
        (SampleSettings, {**SAMPLES, "generate": {"cmdd": "x"}}, "generate", "the key 'cmd' is missing; did you mean it "
         "by 'cmdd'?"),
        (SampleSettings, {**SAMPLES, "generate": "x"}, "generate", "found 'x'; a block of keys is needed"),
        (ResourceSettings, {"task_server": "dask"}, "task_server", "found 'dask'; known: 'celery'."),
        (ResourceSettings, {"task_server": "celry"}, "task_server", "found 'celry'; did you mean 'celery'?"),
        (ResourceSettings, {"workers": {"w": {"step": []}}}, "workers.w", "unknown key 'step'; did you mean 'steps'?"),
        (ResourceSettings, {"overlap": "no"}, "overlap", "found 'no'; true or false is needed"),
        (BatchSettings, {"nodes": "two"}, "nodes", "found 'two'; an integer of at least 1 or 'all' is needed"),
        (StepSettings, {"task_queue": ""}, "task_queue", "found empty text; some text is needed"),
        (StepSettings, {"max_retries": -1}, "max_retries", "found '-1'; an integer of at least 0 is needed"),
        (StepSettings, {"retry_delay": None}, "retry_delay", "found nothing; a number of at least 0 is needed"),
    ],
)  # fmt: skip
def test_problems_name_key_finding_and_remedy(block, data, where, sentence):
    path, said = first_problem(block, data)
    assert path == where
    assert said.startswith(sentence)


def test_what_fits_has_no_problem():
    assert first_problem(SampleSettings, {**SAMPLES, "level_max_dirs": 2, "generate": None}) is None


def test_nearest_of_nothing():
    assert problems.nearest("x", []) == "none is known here."
