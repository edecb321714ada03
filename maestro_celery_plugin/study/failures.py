"""The failures of a step record: how many of its samples may fail, and whether it has failed because of them."""

from __future__ import annotations

from maestro_celery_plugin.ledger.sample_states import SampleStates
from maestro_celery_plugin.states import ExitCode, Outcome
from maestro_celery_plugin.study.manifest import Manifest

__all__ = ["allowed_failures", "exceeds_limit", "has_failed"]


def allowed_failures(manifest: Manifest) -> int:
    """Return how many samples may fail; by default all but one, and none of a step record that is not sampled."""
    return manifest.samples - 1 if manifest.max_failures is None else manifest.max_failures


def exceeds_limit(manifest: Manifest, samples: SampleStates) -> bool:
    """Tell whether more samples have failed than may fail."""
    if samples.failures <= allowed_failures(manifest):
        return False
    return manifest.sampled or not _continues(manifest, samples)


def has_failed(manifest: Manifest, samples: SampleStates) -> bool:
    """Tell whether a step record has failed because of its samples."""
    return samples.total(Outcome.HARD_FAILED) > 0 or exceeds_limit(manifest, samples)


def _continues(manifest: Manifest, samples: SampleStates) -> bool:
    """Tell whether a step record that is not sampled has asked with its exit code that the study continues.

    If it has failed for another reason, the exit code is that of an earlier attempt.
    """
    return bool(samples.code(0) == ExitCode.SOFT_FAIL) and not samples.exhausted[0]
