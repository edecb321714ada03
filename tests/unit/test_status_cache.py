"""The cache of the status: with it, a command shows what it would show without it, whatever happens to the file."""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import zipfile
from pathlib import Path

import pytest
from damages import each_example
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support import PATIENCE_S

from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.maestro import status_keeper
from maestro_celery_plugin.maestro.status_keeper import keep_status
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


# --- the process of the conductor --------------------------------------------------------------------


class Keeper:
    """A conductor of which only the number of samples that have ended is known."""

    def __init__(self, study):
        self.plan, self.watchers, self.ended_samples = study.plan, [], 0
        keep_status(self)
        keep_status(self)
        (self.keeper,) = self.watchers

    def look(self, ended):
        """Return whether a look starts the process, and wait for its end."""
        self.ended_samples, self.keeper._due_at, before = ended, 0.0, self.keeper._process
        self.keeper()
        if self.keeper._process is before:
            return False
        assert self.keeper._process.wait(PATIENCE_S) == 0
        return True


def test_the_first_status_of_a_user_finds_what_the_conductor_has_let_read(study, monkeypatch):
    write(study, random.Random(7), 1)
    conductor = Keeper(study)

    assert not conductor.look(status_keeper._LEAST_ENDED - 1)
    assert not (study.plan.info / CACHE).exists()
    assert conductor.look(status_keeper._LEAST_ENDED)

    assert entries_read(study, monkeypatch) == 0
    assert shown(study) == without_cache(study)


def test_the_conductor_lets_read_again_when_much_is_new(study):
    """Given a small study, after each million samples; given a large one, after a twentieth more."""
    conductor = Keeper(study)

    ends = [0, *(x * 10**6 for x in (1, 1.9, 2, 40, 41, 42.2, 43))]

    assert [conductor.look(int(ended)) for ended in ends] == [False, True, False, True, True, False, True, False]


def test_the_conductor_does_not_wait_for_the_process(study, monkeypatch):
    """Given a process that takes long, then no second one starts beside it."""
    monkeypatch.setattr(status_keeper, "command_line", lambda *args: ["sleep", "600"])
    conductor = Keeper(study)
    conductor.ended_samples = 10**6
    conductor.keeper()
    process = conductor.keeper._process
    conductor.ended_samples, conductor.keeper._due_at = 10**7, 0.0
    conductor.keeper()

    assert conductor.keeper._process is process
    process.kill()
    process.wait()


@pytest.mark.parametrize("at", [0, 1, 5, 11, 12])
def test_a_process_that_is_killed_while_it_stores_leaves_the_file_as_it_was(study, at, monkeypatch):
    """Given a process that is killed before the part `at` of the file, or before it replaces the file (12)."""
    write(study, random.Random(8), 1)
    shown(study)
    before = (study.plan.info / CACHE).read_bytes()
    write(study, random.Random(9), 2)
    expected = without_cache(study)
    child = os.fork()
    if not child:
        kill_before(at)
        study.reader.read()
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (study.plan.info / CACHE).read_bytes() == before
    (left,) = study.plan.info.glob(f".{CACHE}.*")
    os.utime(left, (0, 0))
    assert shown(study) == expected
    assert entries_read(study, monkeypatch) == 0
    assert not left.exists()


def kill_before(at):
    """Let this process be killed before it begins the part `at` of the archive, or replaces the file."""
    parts, begin = itertools.count(1), zipfile.ZipFile.open
    die = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
    Path.replace = lambda *args: die()
    zipfile.ZipFile.open = lambda *args, **kwargs: (die() if is_write(args) and next(parts) > at else None) or begin(
        *args, **kwargs
    )


def is_write(args):
    return len(args) > 2 and args[2] == "w"


def test_what_another_process_writes_now_stays(study):
    write(study, random.Random(10), 1)
    (study.plan.info / f".{CACHE}.1234").touch()

    assert shown(study)
    assert (study.plan.info / f".{CACHE}.1234").exists()


# --- any bytes ---------------------------------------------------------------------------------------


@each_example(60)
@given(data=st.data())
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
