"""The cache of the status: with it, a command shows what it would show without it, whatever happens to the file."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.report import ledger_samples
from maestro_celery_plugin.report.ledger_samples import CACHE, LedgerSamples
from maestro_celery_plugin.study.manifest import Manifest
from tests.unit.test_status import Study, row

SAMPLES = 40


@pytest.fixture(autouse=True)
def stores_at_once(monkeypatch):
    monkeypatch.setattr(ledger_samples, "_STORED_ENTRIES", 0)


@pytest.fixture
def study(tmp_path):
    study = Study(tmp_path / "study")
    for number in (1, 2):
        study.submit(number, SAMPLES)
    study.write_table(row(1, "RUNNING"), row(2, "RUNNING"))
    return study


def events(random_, epoch):
    """Return entries of workers and of the coordinator, as (writer, kind, record, epoch, start, stop, code)."""
    for _ in range(60):
        writer, record, sample = f"w-1-{random_.randrange(3)}", random_.randint(1, 2), random_.randrange(SAMPLES)
        yield writer, Kind.STARTED, record, epoch, sample, 0, 0
        code = random_.choice((0, 0, 0, 3, 100, 104))
        end = random_.choice((Kind.ENDED, Kind.ENDED, Kind.ENDED, Kind.STOPPED, None))
        if end is not None:
            yield writer, end, record, epoch, sample, random_.randrange(10**7), code
        elif random_.random() < 0.3:
            yield "coordinator", Kind.LOST, record, epoch, sample, 0, 0
        if random_.random() < 0.1:
            yield "coordinator", random_.choice((Kind.RERUN, Kind.INVALID)), record, epoch, sample, sample + 3, 0
    yield "coordinator", Kind.SENT, 1, epoch + 1, 0, SAMPLES, 0


def write(study, random_, epoch):
    for writer, *entry, code in events(random_, epoch):
        study.write(writer, tuple(entry), code=code)


def shown(study):
    """Return what the views show, and the reader."""
    reader = study.reader
    status = reader.read()
    steps = [(step.name, step.state, step.samples, step.rate) for step in status.steps]
    samples = [(one.manifest.name, one.index, one.code, one.duration_s, one.losses) for one in reader.failed(1000)]
    slowest = sorted((one.manifest.name, one.index, one.duration_s) for one in reader.slowest(7))
    records = [(record.interruptions, record.longest_interruption_s) for record in reader.records]
    return steps, samples, slowest, records, reader.running_samples(), status.damage


def without_cache(study):
    path = study.plan.info / CACHE
    content = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    found = shown(study)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    return found


def entries_read(study, monkeypatch):
    """Return how many entries a command reads."""
    counts = []
    apply = LedgerSamples._apply
    with monkeypatch.context() as patch:
        patch.setattr(LedgerSamples, "_apply", lambda self, e, w: (counts.append(len(e)), apply(self, e, w)))
        study.reader.read()
    return sum(counts)


@pytest.mark.parametrize("seed", range(8))
def test_a_view_shows_the_same_with_the_cache(study, seed, monkeypatch):
    random_ = random.Random(seed)
    for epoch in range(1, 4):
        write(study, random_, epoch)
        expected = without_cache(study)
        assert shown(study) == expected  # what is new was read besides what earlier commands have stored
        assert shown(study) == expected
        assert entries_read(study, monkeypatch) == 0


def test_samples_that_were_added_are_waiting(study):
    write(study, random.Random(1), 1)
    study.reader.read()
    path = study.plan.records / "sim" / "X.1" / "manifest.json"
    replace(Manifest.read(path), samples=SAMPLES + 7).write(path)

    assert shown(study) == without_cache(study)
    assert study.reader.read().steps[0].samples.total == SAMPLES + 7


def test_a_changed_number_of_retries_counts(study):
    study.write("w-1-1", *((Kind.ENDED, 1, epoch, 5, 1000) for epoch in (1, 2)), code=104)
    study.reader.read()
    path = study.plan.records / "sim" / "X.1" / "manifest.json"
    replace(Manifest.read(path), max_retries=1).write(path)

    assert shown(study) == without_cache(study)
    assert study.reader.read().steps[0].samples.failed == 1


@pytest.mark.parametrize("change", ["shorter", "other", "gone"])
def test_a_cache_of_other_files_is_not_used(study, change):
    """Given a ledger file that is not the one that was read, for example of a copy of the study."""
    write(study, random.Random(2), 1)
    study.reader.read()
    file = study.plan.ledger / "w-1-1.ledger"
    content = file.read_bytes()
    file.unlink()
    if change == "shorter":
        file.write_bytes(content[: len(content) // 2])
    elif change == "other":
        file.write_bytes(content[:44])
        study.write("w-1-1", *((Kind.STARTED, 1, 1, sample % SAMPLES, 0) for sample in range(500)))

    assert shown(study) == without_cache(study)


def test_a_damaged_ledger_is_not_stored(study):
    write(study, random.Random(3), 1)
    file = study.plan.ledger / "w-1-1.ledger"
    content = file.read_bytes()
    file.write_bytes(content[:440] + bytes(44) + content[484:])
    damaged = shown(study)
    file.write_bytes(content)  # it becomes visible, or its writer repeats it

    assert damaged[-1] and not shown(study)[-1]
    assert shown(study) == without_cache(study)


def test_a_pipe_in_its_place_does_not_block(study):
    write(study, random.Random(6), 1)
    os.mkfifo(study.plan.info / CACHE)

    assert shown(study)


def test_a_directory_that_cannot_be_written_needs_no_cache(study, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maestro_celery_plugin.report.status_cache.replaced", full)
    write(study, random.Random(4), 1)
    assert shown(study)
    assert not (study.plan.info / CACHE).exists()


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_as_good_as_no_cache(study, data):
    if not (study.plan.info / CACHE).exists():
        write(study, random.Random(5), 1)
        type(study).expected = without_cache(study)
        shown(study)
        type(study).content = (study.plan.info / CACHE).read_bytes()
    content = bytearray(study.content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        elif change == "cut":
            del content[at : at + data.draw(st.integers(1, 100))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    (study.plan.info / CACHE).write_bytes(content)

    assert shown(study) == study.expected
