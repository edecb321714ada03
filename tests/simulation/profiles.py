"""The profiles: which faults a simulation has, and how often. Each seed draws some of the faults of its profile."""

from __future__ import annotations

import dataclasses
import random

from simulation.filesystem import Caching

__all__ = ["PROFILES", "Profile", "draw"]

PROFILES = ("calm", "nfs", "storm")


@dataclasses.dataclass
class Profile:
    """One world. Rates are per message, per operation, or per hour of simulated time, as their names say.

    Attributes:
        workers: Where the workers are: `local` (the conductor's node), `remote` (a user starts them on other nodes),
            or `allocation` (batch jobs).
        faults_end_s: No fault begins after this time.
        moves: Whether conductors begin on either of two login nodes.
        limit_s: The study must end within this time after the last fault.
        studies: The studies of the session; they share its worker group.
        repeats_failed: Whether a user lets the failed samples run again (`resume --failed`).
        collects: Whether a sample of the step that depends on another one reads all its samples, or only its own.
    """

    name: str = "calm"
    workers: str = "local"
    nodes: int = 1
    slots: int = 4
    records: int = 2
    samples: int = 20
    mean_s: float = 2.0
    poll_s: float = 10.0
    retry_delay_s: float = 0.0
    max_retries: int = 2
    sync_ledger: bool = False
    idle_limit_s: float = 60.0
    # The file system.
    caching: Caching | None = None
    operation_s: float = 0.0002
    wait_rate: float = 0.0
    wait_s: float = 0.0
    error_rate: float = 0.0
    lost_answer_rate: float = 0.0
    # The broker.
    send_s: float = 0.0
    deliver_s: float = 0.002
    reorders: bool = False
    lose_rate: float = 0.0
    double_rate: float = 0.0
    late_rate: float = 0.0
    late_s: float = 0.0
    unanswered_rate: float = 0.0
    is_private: bool = False
    wipes_per_hour: float = 0.0
    refusals_per_hour: float = 0.0
    # Samples.
    fail_share: float = 0.0
    hard_share: float = 0.0
    request_share: float = 0.0
    killer_share: float = 0.0
    poison: int = 0
    long_share: float = 0.0
    # Processes and nodes.
    worker_kills_per_hour: float = 0.0
    supervisor_kills_per_hour: float = 0.0
    pauses_per_hour: float = 0.0
    cuts_per_hour: float = 0.0
    node_losses_per_hour: float = 0.0
    home_losses_per_hour: float = 0.0
    moves: bool = False
    clock_jumps_per_hour: float = 0.0
    conductor_kills_per_hour: float = 0.0
    second_conductors_per_hour: float = 0.0
    cancels_per_hour: float = 0.0
    stops_per_hour: float = 0.0
    stop_share: float = 0.0
    step_cancels_per_hour: float = 0.0
    purges_per_hour: float = 0.0
    power_cuts_per_hour: float = 0.0
    full_disks_per_hour: float = 0.0
    # Allocations.
    walltime_s: int = 0
    queue_s: float = 0.0
    preemptions_per_hour: float = 0.0
    silences_per_hour: float = 0.0
    faults_end_s: float = 0.0
    limit_s: float = 1800.0
    # Users and studies.
    studies: int = 1
    repeats_failed: bool = False
    collects: bool = False


def draw(name: str, seed: int) -> Profile:
    """Return the world of a seed."""
    rng = random.Random(f"{name} {seed}")
    profile = Profile(name=name)
    profile.slots = rng.choice((1, 2, 4))
    profile.records = rng.choice((1, 1, 2, 3))
    profile.samples = rng.choice((1, 5, 12, 30))
    profile.mean_s = rng.choice((0.001, 0.1, 1.0, 5.0))
    profile.poll_s = rng.choice((1.0, 10.0, 60.0))
    profile.max_retries = rng.choice((2, 2, 6))
    profile.retry_delay_s = rng.choice((0.0, 0.0, 5.0))
    if rng.random() < 0.5:
        profile.fail_share, profile.request_share = 0.1, 0.2
    if name == "calm":
        return profile
    profile.workers = rng.choice(("remote", "remote", "allocation"))
    profile.nodes = rng.choice((1, 2, 3))
    profile.caching = Caching()
    profile.operation_s = rng.choice((0.0005, 0.002))
    profile.wait_rate, profile.wait_s = rng.choice(((0.0, 0.0), (0.05, 0.02), (0.02, 1.0)))
    profile.deliver_s, profile.reorders = rng.choice((0.002, 0.05)), rng.random() < 0.5
    profile.faults_end_s = rng.choice((30.0, 90.0, 200.0))
    if profile.workers == "allocation":
        profile.walltime_s, profile.queue_s = rng.choice((120, 600, 3600)), rng.choice((0.0, 20.0))
    if name == "nfs":
        return profile
    _draw_storm(profile, rng)
    return profile


def _draw_storm(profile: Profile, rng: random.Random) -> None:
    """Add some of the faults: a world with all of them at once hides what each of them does."""

    def some(value: float, share: float = 0.3) -> float:
        return value if rng.random() < share else 0.0

    if rng.random() < 0.2:
        profile.workers, profile.nodes, profile.caching, profile.walltime_s = "local", 1, None, 0
    profile.error_rate = some(0.003)
    profile.lost_answer_rate = some(0.05)
    profile.lose_rate, profile.double_rate = some(0.2), some(0.2)
    profile.late_rate, profile.late_s = some(0.2), rng.choice((5.0, 40.0))
    profile.unanswered_rate = some(0.1)
    profile.send_s = some(0.3)
    profile.wipes_per_hour, profile.refusals_per_hour = some(60), some(60)
    profile.killer_share = some(0.1)
    profile.hard_share = some(0.05, 0.15)
    profile.poison = int(rng.random() < 0.1)
    profile.long_share = some(0.2)
    profile.worker_kills_per_hour = some(120)
    profile.supervisor_kills_per_hour = some(60)
    profile.pauses_per_hour, profile.cuts_per_hour = some(120), some(100)
    if profile.cuts_per_hour:
        profile.long_share = max(profile.long_share, some(0.4, 0.5))
    profile.node_losses_per_hour = some(60)
    profile.clock_jumps_per_hour = some(60)
    profile.conductor_kills_per_hour = some(100)
    profile.second_conductors_per_hour = some(60)
    profile.cancels_per_hour = some(100, 0.2)
    if profile.workers != "local":
        profile.home_losses_per_hour, profile.moves = some(60, 0.15), rng.random() < 0.3
    profile.is_private = rng.random() < 0.4
    profile.stops_per_hour, profile.stop_share = some(60, 0.15), some(0.05, 0.1)
    profile.step_cancels_per_hour, profile.purges_per_hour = some(60, 0.1), some(60, 0.1)
    profile.power_cuts_per_hour = some(60, 0.3) if profile.workers == "local" else 0.0
    profile.full_disks_per_hour = some(60, 0.2)
    profile.preemptions_per_hour, profile.silences_per_hour = some(100), some(60)
    profile.studies = 1 + int(rng.random() < 0.15)
    profile.repeats_failed, profile.collects = rng.random() < 0.25, rng.random() < 0.5
