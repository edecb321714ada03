"""The `args` of worker groups: options of `celery worker`, checked when the specification is loaded."""

import logging

import pytest

from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.spec.celery_options import check_celery_options, parse_celery_options, usable_cpus
from maestro_celery_plugin.spec.problems import passed


@pytest.mark.parametrize(
    ("args", "slots", "pool"),
    [
        ("", usable_cpus(), "threads"),
        ("--concurrency 3", 3, "threads"),
        ("--concurrency=3", 3, "threads"),
        ("-c 3 -l INFO -O fair --prefetch-multiplier 1 -E", 3, "threads"),
        ("-Ofair -l info", usable_cpus(), "threads"),
        ("--pool prefork -c 2", 2, "prefork"),
        ("-P solo -c 4", 1, "solo"),
        ("--logfile=%%p.log", usable_cpus(), "threads"),
    ],
)
def test_options_set_slots_and_pool(args, slots, pool):
    options = parse_celery_options(args)
    assert (options.slots, options.pool) == (slots, pool)


@pytest.mark.parametrize(
    ("args", "others"),
    [
        ("-c 3", {}),
        ("--disable-prefetch", {}),
        (
            "-c 3 -l INFO -O fair --prefetch-multiplier 1 -E --without-heartbeat",
            {
                "loglevel": logging.INFO,
                "optimization": "fair",
                "prefetch_multiplier": 1,
                "task_events": True,
                "without_heartbeat": True,
            },
        ),
    ],
)
def test_other_options_are_those_of_celerys_worker(args, others):
    assert parse_celery_options(args).others == others


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--concurency 3", "No such option '--concurency'. Did you mean '--concurrency'?"),
        ("-A app", "the option -A cannot be set here: workers run the application of the plugin."),
        ("--app=x", "the option --app cannot be set here: workers run the application of the plugin."),
        (
            "-b redis://",
            "the option -b cannot be set here: the broker is chosen with `maestro run --broker`.",
        ),
        (
            "-Q q",
            "the option --queues cannot be set here: the task queues follow from `steps` or `task_queues`.",
        ),
        ("-n w1", "the option --hostname cannot be set here: the plugin names the workers."),
        ("--pool gevent", "found the pool 'gevent'; one of threads, solo, prefork is needed."),
        ("-c 0", "found --concurrency 0; a number of at least 1 is needed."),
        ("-c two", "found --concurrency two; a number of at least 1 is needed."),
        ("-c", "Option '-c' requires an argument."),
        ("--help", "the option --help cannot be set here: it does not start a worker."),
        ("-D", "the option --detach cannot be set here: the plugin starts and ends the workers."),
        ("stray", "unexpected argument 'stray'."),
        ("'", "No closing quotation"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused(args, message):
    with pytest.raises(SpecificationError) as error:
        passed(check_celery_options(args, "merlin.resources.workers.w.args"), "study.yaml")
    assert str(error.value) == f"study.yaml: merlin.resources.workers.w.args: {message}"


@pytest.mark.parametrize("args", ["-l loud", "--prefetch-multiplier many", "-O quick"])
def test_an_option_with_a_wrong_value_is_refused(args):
    with pytest.raises(ValueError, match="Invalid value for"):
        parse_celery_options(args)
