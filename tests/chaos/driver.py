"""The driver: it runs one study, breaks parts of it at random times, and waits for its end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

from proxy import Proxy
from support import Study, wait_for

from chaos.parts import Parts
from chaos.specification import POOLS, SAMPLES, specification
from chaos.verdict import broken_promises

__all__ = ["break_study"]

# Seconds in which parts are broken, and in which the study must end afterwards.
BREAK_S, HEAL_S = 25.0, 150.0


def _faults(parts: Parts, *, gentle: bool, is_private: bool) -> dict[str, Callable[[], object]]:
    """Return the faults by name; gentle faults never make a sample run again."""
    faults: dict[str, Callable[[], object]] = {
        "pause the workers": lambda: parts.pause("worker"),
        "pause the workers and their samples": lambda: parts.pause("worker", "supervisor", "sample"),
        "pause the conductor": lambda: parts.pause("conductor"),
        "lose all messages": parts.flush_broker,
        "drop all clients": parts.drop_clients,
        "drop all clients while the workers are stopped": parts.freeze_and_drop,
        "kill the conductor": lambda: (parts.kill("conductor"), parts.resume()),
        "resume a running study": parts.resume,
    }
    if not is_private:
        faults["the broker is away"] = parts.take_broker_away
    if is_private:
        faults["pause the broker"] = lambda: parts.pause("server")
        faults["kill the broker"] = lambda: parts.kill("server")
        faults["kill the supervisor of the broker"] = lambda: parts.kill("host")
        faults["kill the broker and its supervisor"] = lambda: parts.kill("server", "host")
    if not gentle:
        everything = ("conductor", "worker", "supervisor", "host", "server")
        faults["kill the workers"] = lambda: parts.kill("worker")
        faults["kill the supervisors"] = lambda: parts.kill("supervisor")
        faults["kill workers and supervisors"] = lambda: parts.kill("worker", "supervisor")
        faults["kill everything"] = lambda: (parts.kill(*everything), parts.resume())
        faults["kill one sample"] = parts.kill_one_sample
        faults["cancel and resume"] = parts.cancel_and_resume
    return faults


def break_study(
    run: Callable[..., Study], seed: int, *, broker_url: str | None, gentle: bool, pool: str | None = None
) -> dict[str, object]:
    """Run and break a study; return what was done and what is wrong.

    Args:
        run: Starts a study with `maestro run`.
        seed: Seed of all random choices.
        broker_url: URL of a broker; None for the private broker.
        gentle: Whether to do nothing that may make a sample run again.
        pool: The worker groups; None for a random choice.
    """
    choose = random.Random(seed)
    pool, kind = pool or choose.choice(sorted(POOLS)), choose.choice(sorted(SAMPLES))
    proxy = Proxy(broker_url) if broker_url else None
    options = ("--broker", proxy.url) if proxy else ()
    study = run(specification(kind, pool), "-s", "1", *options, name=f"chaos{seed}")
    parts = Parts(study, broker_url, proxy, choose)
    study.await_text("one/**/runs", timeout_s=100)
    faults, done = _faults(parts, gentle=gentle, is_private=broker_url is None), []
    end = time.monotonic() + BREAK_S
    while time.monotonic() < end and not (study.path / "last" / "runs").exists():
        time.sleep(choose.uniform(0.5, 3))
        done.append(choose.choice(sorted(faults)))
        faults[done[-1]]()
    healed_s = _await_end(study, parts)
    wrong = [*parts.complaints, *broken_promises(study, SAMPLES[kind].count, gentle=gentle, killed_samples="kill one sample" in done)]
    states = {step["name"]: step["state"] for step in study.status()["steps"]}
    wrong += [f"{name} is {state}." for name, state in states.items() if state != "FINISHED"]
    wait_for(lambda: not study.processes(), f"the end of all processes: {study.processes()}", 45)
    if proxy:
        proxy.close()
    return {"seed": seed, "pool": pool, "samples": kind, "gentle": gentle, "healed_s": healed_s, "done": done, "wrong": wrong}


def _await_end(study: Study, parts: Parts) -> float:
    """Wait for the end of a study, and resume it whenever its conductor has ended too early; return the seconds."""
    begin = time.monotonic()

    def has_finished() -> bool:
        state = study.status()["state"]
        if state not in ("RUNNING", "PENDING", "FINISHED"):
            parts.resume()
        return state == "FINISHED"

    wait_for(has_finished, f"the end of the study: {json.dumps(study.status()['steps'])}", HEAL_S)
    return round(time.monotonic() - begin, 1)
