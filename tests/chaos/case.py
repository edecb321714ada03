"""A case: what one seed of the chaos runs and breaks."""

from __future__ import annotations

import dataclasses
import random

from chaos.specification import POOLS, SAMPLES, SHAPES

__all__ = ["BROKERS", "Case"]

BROKERS = ("private", "redis", "private", "rabbitmq")
# How often seeds choose studies that grow, are nested (which takes the longest), or are plain.
_WEIGHTS = (2, 1, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run and broken.

    Attributes:
        seed: Seed of all random choices.
        broker: `private`, `redis` or `rabbitmq`.
        pool: The worker groups, a key of `POOLS`.
        shape: The study, a key of `SHAPES`.
        samples: The samples, a key of `SAMPLES`.
        gentle: Whether nothing is done that may make a sample run again.
        slurm: Whether the workers run in allocations of a Slurm cluster.
    """

    seed: int
    broker: str
    pool: str
    shape: str
    samples: str
    gentle: bool
    slurm: bool

    @classmethod
    def of(
        cls, seed: int, *, broker: str | None = None, pool: str | None = None, shape: str | None = None, slurm: bool = False
    ) -> Case:
        """Return the case of a seed; what is given here is not left to the seed."""
        choose = random.Random(seed)
        chosen_pool, samples = choose.choice(sorted(POOLS)), choose.choice(sorted(SAMPLES))
        shape = shape or choose.choices(sorted(SHAPES), _WEIGHTS)[0]
        return cls(
            seed=seed,
            broker=broker or BROKERS[seed % len(BROKERS)],
            pool=pool or chosen_pool,
            shape=shape,
            samples=_samples_of(shape, samples, slurm=slurm),
            gentle=seed // len(BROKERS) % 2 == 1,
            slurm=slurm,
        )

    @property
    def slots(self) -> int:
        """The number of samples that may run at the same time."""
        return POOLS[self.pool].slots * (2 if self.slurm else 1)

    @property
    def name(self) -> str:
        """What is run, in a few words."""
        words = (self.broker, self.pool, self.shape, self.samples, *["gentle"] * self.gentle, *["slurm"] * self.slurm)
        return ", ".join(words)


def _samples_of(shape: str, samples: str, *, slurm: bool) -> str:
    """Return samples with which a study lasts as long as its faults; several studies take long enough."""
    if SHAPES[shape] > 1:
        return "short"
    return "long" if slurm else samples
