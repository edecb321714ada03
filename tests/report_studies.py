"""Studies with a made ledger, for the tests of the report: any times, any number of samples, no worker."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import yaml

from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    ResourceSettings,
    SampleSettings,
    WorkerGroupSettings,
)
from maestro_celery_plugin.ledger.entries import ENTRY, Kind, _checksums
from maestro_celery_plugin.study.additions import Additions, write_additions
from maestro_celery_plugin.study.heartbeats import Heartbeat
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_facts import WorkerFacts, write_facts

BEGIN = 1_700_000_000.0
STATUS_HEADER = (
    "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params"
)


def entries(rows: list[tuple] | np.ndarray) -> np.ndarray:
    """Return entries with their checksums; rows are (kind, slot, code, record, epoch, start, stop, time)."""
    made = np.zeros(len(rows), ENTRY)
    if isinstance(rows, np.ndarray):
        for name in rows.dtype.names:
            made[name] = rows[name]
    else:
        for place, (kind, slot, code, record, epoch, start, stop, time) in enumerate(rows):
            made[place] = (kind, 0, slot, code, record, epoch, start, stop, BEGIN + time, 0)
    if len(made) > 1000:
        made["check"] = _checksums(made)
    else:
        made["check"] = [zlib.crc32(entry.tobytes()[:-4]) for entry in made]
    return made


class MadeStudy:
    """A study directory as a conductor leaves it."""

    def __init__(
        self, root: Path, labels: tuple[str, ...] = (), table: str = "", rows: int = 0, number: int = 1
    ) -> None:
        root.mkdir(parents=True)
        info = root / "merlin_info"
        info.mkdir()
        self.labels, self.number = labels, number
        self.table = info / "samples.csv"
        self.table.write_text(table)
        samples = SampleSettings(file=str(self.table), column_labels=labels) if labels else None
        groups = {"sim": WorkerGroupSettings(task_queues=("merlin",), args="--concurrency 4")}
        settings = EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=groups), samples=samples)
        self.plan = StudyPlan(
            root=root,
            timestamp="20260101-000000",
            settings=settings,
            id=str(number),
            table=self.table if labels else None,
            rows=rows,
            specification=Path("/home/user/sweep.yaml"),
        )
        (root / "batch.info").write_text(yaml.safe_dump(self.plan.to_batch()))
        (root / "sweep.study.pkl").touch()
        self.session = Session.create(self.plan.session)
        if rows:
            write_additions(self.plan, Additions(study_id=str(number)))
        self._status: list[str] = []

    def specification(self, text: str) -> None:
        Path(list(self.plan.specification_files.values())[1]).write_text(text)

    def record(
        self, number: int, step: str, samples: int, *, state: str = "FINISHED", params: str = "", sampled: bool = True
    ) -> Manifest:
        name = f"{step}_{params.replace(':', '.')}" if params else step
        manifest = Manifest(
            number=number,
            name=name,
            step=step,
            workspace=str(self.plan.root / step / str(number)),
            script=name.replace("/", "_"),
            cmd="true",
            restart="",
            shell="/bin/bash",
            sampled=sampled,
            samples=samples,
            labels=list(self.labels) if sampled else [],
            table=str(self.table) if sampled and self.labels else None,
            index_cache=str(self.plan.info),
            level_max_dirs=25,
            task_queue="merlin",
            max_retries=30,
            retry_delay_s=1.0,
            study_id=str(number),
        )
        manifest.write(self.plan.records / str(number) / "manifest.json")
        self._status.append(f"{name},{name}#1,{step}/{number},{state},--:--:--,--:--:--,--,--,--,0,{params}")
        (self.plan.root / "status.csv").write_text("\n".join([STATUS_HEADER, *self._status]))
        return manifest

    def ledger(self, writer: str, rows: list[tuple] | np.ndarray) -> None:
        """Write the ledger of a writer."""
        self.plan.ledger.mkdir(exist_ok=True)
        head = entries([(Kind.HEAD, 0, 0, 0, 2, self.number, 0, 0.0)])
        (self.plan.ledger / f"{writer}.ledger").write_bytes(head.tobytes() + entries(rows).tobytes())

    def facts(self, worker: str, node: str, allocation: str = "", slots: int = 1) -> None:
        versions = {"maestro-celery-plugin": "0.1.0", "maestrowf": "1.2.0", "celery": "5.5.0", "Python": "3.11.2"}
        facts = WorkerFacts(name=worker, group="sim", node=node, allocation=allocation, slots=slots, versions=versions)
        write_facts(self.session, facts)

    def allocation(self, number: int, state: str = "COMPLETED", slots: int = 1, **times: float) -> None:
        """Write an allocation; times are relative to `BEGIN`."""
        directory = self.plan.allocations / "sim" / str(number)
        directory.mkdir(parents=True)
        values = {"job": str(1000 + number), "state": state, "reason": "", "released": True, "slots": slots}
        values |= {name: BEGIN + time for name, time in times.items()}
        (directory / "allocation.json").write_text(json.dumps(values))

    def beat(self, **values: object) -> None:
        self.session.heartbeats.write(Heartbeat(**values))


def attempt(
    sample: int,
    start: float,
    stop: float,
    *,
    code: int = 0,
    slot: int = 0,
    record: int = 1,
    epoch: int = 1,
    **more: Kind,
) -> list[tuple]:
    """Return the entries of one attempt at a sample."""
    end = more.get("end", Kind.ENDED)
    return [
        (Kind.STARTED, slot, 0, record, epoch, sample, 0, start),
        (end, slot, code, record, epoch, sample, round((stop - start) * 1e6), stop),
    ]


def lease(taken: float, released: float, *runs: list[tuple], slot: int = 0, record: int = 1) -> list[tuple]:
    """Return the entries of a slot that has samples from one time to another."""
    inner = [entry for run in runs for entry in run]
    return [
        (Kind.TAKEN, slot, 1, record, 1, 0, 1, taken),
        *inner,
        (Kind.RELEASED, slot, 0, record, 1, 0, 1, released),
    ]


def many_samples(root: Path, count: int, workers: int = 16, slots: int = 4, seed: int = 1) -> MadeStudy:
    """Make a study of `count` samples in two steps, in which one machine is slow, and samples fail where X > 0.95."""
    random = np.random.default_rng(seed)
    values = random.random((count, 3))
    table = "\n".join(f"{x:.6f},{y:.6f},{'abc'[int(3 * z)]}" for x, y, z in values.tolist()) + "\n"
    study = MadeStudy(root, ("X", "Y", "KIND"), table, count)
    study.specification("description:\n  name: sweep\n  description: A sweep.\nstudy: []\n")
    half = count // 2
    study.record(1, "simulate", count)
    study.record(2, "post", count, state="RUNNING")
    sent = [(Kind.SENT, 0, 0, record, 1, 0, count, 0.0) for record in (1, 2)]
    study.ledger("coordinator", sent)
    kinds = np.dtype(ENTRY.descr)
    latest = 0.0
    for worker in range(workers):
        of_worker = np.arange(worker, count + half, workers)
        rows = np.zeros(2 * len(of_worker) + 2 * slots, kinds)
        slow = 1.6 if worker == workers - 1 else 1.0
        samples, records = of_worker % count, 1 + of_worker // count
        seconds = slow * np.where(records == 1, 2.0, 0.5) * random.lognormal(0, 0.4, len(of_worker))
        failed = (values[samples, 0] > 0.95) & (values[samples, 1] > 0.5) & (records == 1)
        codes = np.where(failed, np.where(samples % 7 == 0, 3, 1), 0)
        slot = np.arange(len(of_worker)) % slots
        ends = np.zeros(len(of_worker))
        for number in range(slots):
            ends[slot == number] = 40 + np.cumsum(seconds[slot == number] + 0.02)
        latest = max(latest, float(ends.max()))
        starts, stops = rows[slots:-slots:2], rows[slots + 1 : -slots : 2]
        for part, kind in ((starts, Kind.STARTED), (stops, Kind.ENDED)):
            part["kind"], part["slot"], part["record"], part["epoch"], part["start"] = kind, slot, records, 1, samples
        starts["time"], stops["time"] = BEGIN + ends - seconds, BEGIN + ends
        stops["stop"], stops["code"] = (seconds * 1e6).astype(np.uint64), codes
        for number in range(slots):
            rows[number] = (Kind.TAKEN, 0, number, 1, 1, 1, 0, 1, BEGIN + 38 + number, 0)
            last = float(ends[slot == number].max()) if (slot == number).any() else 41.0
            rows[len(rows) - slots + number] = (Kind.RELEASED, 0, number, 0, 1, 1, 0, 1, BEGIN + last, 0)
        allocation = worker * 2 // workers + 1
        study.ledger(f"sim-{allocation}-{worker + 1}", rows)
        study.facts(f"sim-{allocation}-{worker + 1}", f"node{worker + 1:02}", f"sim/{allocation}", slots)
    for number in (1, 2):
        study.allocation(number, slots=workers * slots // 2, submitted_at=0.0, began_at=30.0, ended_at=latest + 60)
    return study


def many_records(root: Path, records: int = 66, samples: int = 20) -> MadeStudy:
    """Make a study of `3 * records + 2` step records: `make` has finished, `simulate` runs with failures, others wait.

    The sample 3 of every third of the first 20 step records of `simulate` has failed, with 100 lines of stderr.
    """
    study = MadeStudy(root, ("X", "NAME"), "".join(f"{i / samples},n{i}\n" for i in range(samples)), samples)
    time, number, rows, waiting = 0.0, 0, [], []
    for step, count in (("make", records), ("simulate", records), ("analyse", records), ("collect", 2)):
        for one in range(count):
            number += 1
            params = f"GAIN:{one};TEMPERATURE:{300 + one}"
            if step in ("analyse", "collect"):
                waiting.append(
                    f"{step}_GAIN.{one}.TEMPERATURE.{300 + one},--,{step}/{number},INITIALIZED,--:--:--,--:--:--,--,--,--,0,{params}"
                )
                continue
            done = samples if step == "make" or one < 20 else (10 if one < 40 else 0)
            state = "FINISHED" if done == samples else ("RUNNING" if done else "PENDING")
            manifest = study.record(number, step, samples, state=state, params=params)
            for sample in range(done):
                time += 0.5
                has_failed = step == "simulate" and one < 20 and one % 3 == 0 and sample == 3
                rows += attempt(sample, time - 0.4, time, code=3 if has_failed else 0, record=number)
                if has_failed:
                    directory = Path(manifest.workspace) / manifest.paths.of(sample)
                    directory.mkdir(parents=True)
                    lines = [f"iteration {i} of {one}\n" for i in range(100)]
                    (directory / f"{manifest.script}.err").write_text("".join(lines) + "no \x1b[31mconvergence\n")
            if state == "RUNNING":
                rows.append((Kind.STARTED, 0, 0, number, 1, done, 0, time))
    (root / "status.csv").write_text("\n".join([STATUS_HEADER, *study._status, *waiting]))
    study.ledger("sim-1-1", rows)
    study.ledger("coordinator", [(Kind.SENT, 0, 0, one, 1, 0, samples, 0.0) for one in range(1, 2 * records + 1)])
    study.allocation(1, state="RUNNING", slots=8, submitted_at=0.0, began_at=30.0)
    return study
