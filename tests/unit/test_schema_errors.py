"""Problems of a document: each invalid value has one sentence with the value that was found and the values allowed."""

import pytest

from maestro_celery_plugin.config import conversion, schema_errors
from maestro_celery_plugin.config.settings import BatchSettings, ResourceSettings, SampleSettings, StepSettings
from maestro_celery_plugin.errors import nearest

SAMPLES = {"file": "x.csv", "column_labels": ["A"]}


def first_problem(block, data):
    return next(iter(schema_errors.problems(data, conversion.json_schema(block))), None)


@pytest.mark.parametrize(
    ("block", "data", "where", "sentence"),
    [
        (SampleSettings, {**SAMPLES, "fil": 1}, "", "unknown key 'fil'; did you mean 'file'?"),
        (SampleSettings, {**SAMPLES, "qqqq": 1}, "", "unknown key 'qqqq'; allowed: 'column_labels', 'file', 'generate', "
         "'level_max_dirs', 'max_samples'."),
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
        (SampleSettings, {**SAMPLES, "generate": {"cmdd": "x"}}, "generate", "unknown key 'cmdd'; did you mean 'cmd'?"),
        (SampleSettings, {**SAMPLES, "generate": "x"}, "generate", "found 'x'; a block of keys is needed"),
        (ResourceSettings, {"task_server": "dask"}, "task_server", "found 'dask'; allowed: 'celery'."),
        (ResourceSettings, {"task_server": "celry"}, "task_server", "found 'celry'; did you mean 'celery'?"),
        (ResourceSettings, {"workers": {"w": {"step": []}}}, "workers.w", "unknown key 'step'; did you mean 'steps'?"),
        (ResourceSettings, {"overlap": "no"}, "overlap", "found 'no'; true or false is needed"),
        (BatchSettings, {"nodes": "two"}, "nodes", "found 'two'; an integer of at least 1 or 'all' is needed"),
        (StepSettings, {"task_queue": ""}, "task_queue", "found empty text; some text is needed"),
        (StepSettings, {"max_retries": -1}, "max_retries", "found '-1'; an integer of at least 0 is needed"),
        (StepSettings, {"max_failures": "5 %"}, "max_failures", "found '5 %'; an integer of at least 0 or a percentage such as `5%` is needed"),
        (StepSettings, {"max_failures": "101%"}, "max_failures", "found '101%'; an integer of at least 0 or a percentage such as `5%` is needed"),
        (StepSettings, {"max_failures": -1}, "max_failures", "found '-1'; an integer of at least 0 or a percentage such as `5%` is needed"),
        (StepSettings, {"retry_delay": None}, "retry_delay", "found nothing; a number of at least 0 and at most 31622400 is needed"),
    ],
)  # fmt: skip
def test_a_problem_has_key_value_and_remedy(block, data, where, sentence):
    path, text = first_problem(block, data)
    assert path == where
    assert text.startswith(sentence)


def test_a_word_in_several_spellings_is_listed_once():
    schema = {"enum": ["LOW", "HIGH", "low", "high", "Low", "High"]}

    assert list(schema_errors.problems("x", schema)) == [("", "found 'x'; allowed: 'HIGH', 'LOW'.")]
    assert list(schema_errors.problems("hgh", schema)) == [("", "found 'hgh'; did you mean 'high'?")]


class _Optional(conversion.Exact, frozen=True, kw_only=True):
    samples: SampleSettings | None = None


def test_each_fault_of_an_optional_block_is_listed():
    """Given a block that may be missing, then its faults and those of the optional blocks in it are all listed."""
    data = {"samples": {"file": "x", "column_label": ["A"], "level_max_dirs": 1, "generate": {"cmdd": "x", "y": 1}}}

    found = [(path, text.partition(";")[0]) for path, text in schema_errors.problems(data, conversion.json_schema(_Optional))]

    assert found == [
        ("samples", "unknown key 'column_label'"),
        ("samples.generate", "unknown key 'cmdd'"),
        ("samples.generate", "unknown key 'y'"),
        ("samples.level_max_dirs", "found '1'"),
    ]


def test_a_valid_block_has_no_problem():
    assert first_problem(SampleSettings, {**SAMPLES, "level_max_dirs": 2, "generate": None}) is None


def test_the_hint_says_that_no_name_is_defined():
    assert nearest("x", []) == "no name is defined here."
