"""Damaged files of the ledger, and sound entries that no writer of this release makes: no error, no wrong outcome."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from damages import check_damages, each_example, no_files, put
from ensembles import a_manifest, a_study, apply_to, entries
from hypothesis import given
from hypothesis import strategies as st

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.conductor.quick_failures import QuickFailures
from maestro_celery_plugin.conductor.step_record import StepRecord
from maestro_celery_plugin.errors import DamagedFileError
from maestro_celery_plugin.ledger.claims import Claims, MessageName
from maestro_celery_plugin.ledger.entries import ENTRY, SUFFIX, Kind
from maestro_celery_plugin.ledger.leases import Leases
from maestro_celery_plugin.ledger.reader import LedgerReader
from maestro_celery_plugin.ledger.sample_set import SampleSet
from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.ledger.store import PartStore, Store
from maestro_celery_plugin.ledger.waiting_messages import WaitingMessages
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.states import Outcome, RunMode
from maestro_celery_plugin.study.assignment import Assignment

STUDIES = Path(__file__).parents[1] / "fixtures" / "studies"
NUMBERS = st.sampled_from([0, 1, 2, 3, 9, 10, 11, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1])
VIEWS = (("status", "--json"), ("samples", "--step", "sim"), ("failed",), ("explain",), ("report", "--json"))


@st.composite
def sound_entries(draw: st.DrawFn) -> np.ndarray:
    """Draw entries with a correct checksum and any values."""
    made = np.zeros(draw(st.integers(1, 12)), ENTRY)
    for entry in made:
        entry["kind"] = draw(st.one_of(st.sampled_from(list(Kind)), st.integers(0, 255)))
        entry["record"] = draw(st.sampled_from([0, 1, 1, 1, 2, 2**32 - 1]))
        entry["slot"], entry["reserved"] = draw(st.integers(0, 2**16 - 1)), draw(st.integers(0, 255))
        entry["code"] = draw(st.sampled_from([-(2**31), -(2**20), -15, -1, 0, 1, 100, 101, 102, 104, 105, 255, 2**31 - 1]))
        entry["epoch"] = draw(NUMBERS) % 2**32
        entry["start"], entry["stop"] = draw(NUMBERS), draw(NUMBERS)
        entry["time"] = draw(st.sampled_from([1.7e9, 0.0, -1.0, 1e18, -1e300, 1e300]))
        entry["check"] = zlib.crc32(entry.tobytes()[:-4])
    return made


@pytest.fixture(scope="module")
def ledger(tmp_path_factory) -> Path:
    """The ledger of a writer with 40 entries."""
    path = tmp_path_factory.mktemp("ledger") / f"w{SUFFIX}"
    writer = LedgerWriter(path)
    for sample in range(20):
        writer.append(Kind.STARTED, 1, 1, sample)
        writer.append(Kind.ENDED, 1, 1, sample, 1000, code=sample % 3)
    writer.close()
    return path


@pytest.mark.parametrize("store", [Store(), PartStore(300)], ids=["whole", "parts"])
@pytest.mark.parametrize("release", ["0.1", "current"])
def test_a_damaged_ledger_has_no_entry_that_was_not_written(ledger, tmp_path, release, store):
    path = tmp_path / f"w{SUFFIX}"
    source = ledger if release == "current" else STUDIES / release / "merlin_info/ledger/sims-1.ledger"
    path.write_bytes(source.read_bytes())
    written = rows_of(path, store)
    assert written

    def check() -> None:
        try:
            found = rows_of(path, store)
        except OSError:
            assert path.is_symlink()
        else:
            # The check word of release 0.1 does not detect that two equal words have become zero.
            assert set(found) <= set(written) or release == "0.1"

    # The conductor reads what is new in a file at once; a sparse file of a terabyte is no damage that a fault makes.
    check_damages(path, check, without=("a huge file",))


def rows_of(path: Path, store: Store) -> list[bytes]:
    """Return the entries that a reader finds in a file, also in one that another process cuts meanwhile."""
    reader, found = LedgerReader(path.parent, store=store), []
    while parts := [part for _, part in reader.poll()]:
        found += [entry.tobytes() for part in parts for entry in part]
    return found


def test_a_damaged_ledger_loses_only_the_damaged_entries_and_counts_them(ledger, tmp_path):
    path, whole = tmp_path / f"w{SUFFIX}", ledger.read_bytes()
    path.write_bytes(whole)
    written = rows_of(path, Store())

    @each_example(20)
    @given(st.integers(ENTRY.itemsize, len(whole) - ENTRY.itemsize - 1), st.integers(1, 60), st.integers(1, 255))
    def check(at: int, length: int, mask: int) -> None:
        end = min(at + length, len(whole) - ENTRY.itemsize)
        path.write_bytes(whole[:at] + bytes(byte ^ mask for byte in whole[at:end]) + whole[end:])
        reader = LedgerReader(tmp_path)
        found = [entry.tobytes() for _, part in reader.poll() for entry in part]
        hit = {place // ENTRY.itemsize - 1 for place in range(at, end)}
        assert found == [row for number, row in enumerate(written) if number not in hit]
        assert reader.damaged == len(hit)

    check()


@each_example(60)
@given(st.lists(sound_entries(), min_size=1, max_size=3))
def test_entries_with_any_values_are_applied_without_an_error(parts):
    states, leases, waiting = SampleStates(10, 2), Leases(), WaitingMessages()
    failures = QuickFailures(is_enabled=True)
    for part in parts:
        leases.apply("w", part)
        waiting.apply(part)
        failures.apply("w", part)
        states.apply(part[part["record"] == 1])
    every = SampleSet.of_range(0, 10)
    assert (leases.samples(1) & every).count + (waiting.samples(1) & every).count <= 20
    assert set(states.outcome.tolist()) <= {int(outcome) for outcome in Outcome}
    assert set(states.mode.tolist()) <= {int(mode) for mode in RunMode}
    assert sum(states.total(outcome) for outcome in Outcome) == 10


@each_example(30)
@given(sound_entries())
def test_entries_about_other_samples_change_no_outcome(part):
    """Given entries about other step records, or about samples beyond the last one, then no outcome changes."""
    states = SampleStates(10, 2)
    states.apply(entries((Kind.STARTED, 3, 1), (Kind.ENDED, 3, 1, 0), (Kind.STARTED, 4, 1), (Kind.ENDED, 4, 1, 9)))
    before = states.outcome.tolist()
    part = part[~np.isin(part["kind"], (Kind.RERUN, Kind.INVALID, Kind.SENT, Kind.CANCELLED))]
    states.apply(part[part["start"] >= 10])
    assert states.outcome.tolist() == before


BEYOND = [(kind, sample, epoch, code, 11) for kind in Kind for sample in (10, 2**63) for epoch in (1, 5) for code in (0, 100, 105)]


def test_a_conductor_ignores_entries_beyond_the_last_sample():
    manifest = a_manifest()
    record = StepRecord(manifest, "sim/X.1", SampleStates(10, 2), active=True)
    apply_to(record, entries(*BEYOND, (Kind.STARTED, 3, 1), (Kind.ENDED, 3, 1, 0)))
    assert np.flatnonzero(record.samples.outcome).tolist() == [3]
    assert not record.delayed and not record.faults


def test_the_views_ignore_entries_beyond_the_last_sample(tmp_path):
    """Given a manifest that was restored from a backup of before an addition, then the views show its samples."""
    plan, _ = a_study(tmp_path / "study", samples=10)
    writer = LedgerWriter(plan.ledger / f"w-1{SUFFIX}")
    for kind, sample, epoch, code, stop in BEYOND:
        if kind is not Kind.HEAD:
            writer.append(kind, 1, epoch, sample, stop, code=code)
    writer.close()
    for words in VIEWS:
        answer = CliRunner().invoke(main, [*words, str(plan.root)])
        assert answer.exception is None or isinstance(answer.exception, SystemExit), words


def test_the_views_read_entries_with_any_values(tmp_path):
    plan, _ = a_study(tmp_path / "study", samples=10)
    path = plan.ledger / f"w-1{SUFFIX}"
    writer = LedgerWriter(path)
    writer.append(Kind.STARTED, 1, 1, 3)
    writer.append(Kind.ENDED, 1, 1, 3, 1000)
    writer.close()
    whole = path.read_bytes()

    @each_example(4)
    @given(sound_entries())
    def check(part: np.ndarray) -> None:
        path.write_bytes(whole + part.tobytes())
        for words in VIEWS:
            answer = CliRunner().invoke(main, [*words, str(plan.root)])
            assert answer.exception is None or isinstance(answer.exception, SystemExit), words
            assert "Traceback" not in answer.output

    check()


@pytest.mark.parametrize("kind", [kind for kind in no_files if kind not in ("nothing", "a link to itself")])
def test_a_claim_that_is_no_link_has_an_unknown_owner(tmp_path, kind):
    """Given a copy of a study with files in place of links, then nobody runs the message twice, and nobody waits for it."""
    claims, name = Claims(tmp_path, 1), MessageName(1, 1, 0, 4)
    claims.prepare(1)
    assert claims.claim(name, "w-1:aa")
    (link,) = (path for path in tmp_path.rglob("*-*") if path.is_symlink())
    put(link, kind)

    assert claims.claim(name, "w-1:aa") is False
    assert claims.owner(name) == ""


def test_a_damaged_assignment_is_an_error_or_has_the_modes_of_its_samples(tmp_path):
    assignment, modes = Assignment(tmp_path, 2), np.array([RunMode.FIRST, RunMode.ASSIGNED, RunMode.RESTART] * 7, np.uint8)
    assignment.write(modes)
    written = assignment.read(0, 21)
    assert written

    def check() -> None:
        try:
            found = assignment.read(0, 21)
        except (OSError, DamagedFileError, EOFError) as error:
            assert str(error)
        else:
            assert all(isinstance(mode, RunMode) for mode in found.values()) and max(found, default=0) < 21

    check_damages(tmp_path / "assignment-2.npy", check)


def test_an_assignment_of_fewer_samples_is_damaged(tmp_path):
    """Otherwise the second half of the file, which has the other bits, would count as modes of further samples."""
    Assignment(tmp_path, 2).write(np.full(8, RunMode.RESTART, np.uint8))
    with pytest.raises(DamagedFileError, match=r"assignment-2\.npy"):
        Assignment(tmp_path, 2).read(0, 9)
