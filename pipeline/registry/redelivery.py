"""Delivering what an earlier process could not."""

import time
from pathlib import Path

from pipeline.registry.outbox import Outbox, listed
from pipeline.registry.uris import TrackingError, check_reachable, mask

# A server that is there takes the next batch within this time.
_STALLED_SECONDS = 60.0


def deliver_folder(folder: Path, tracking_uri: str | None = None) -> str:
    """Brings to MLflow all that a run folder's record holds and MLflow has not taken.

    May be repeated: what MLflow has is not sent again, or sent without effect.

    Args:
        folder: the run folder.
        tracking_uri: see ``Outbox.of_folder``.

    Returns:
        What was delivered, in words.

    Raises:
        TrackingError: no record is there, another process has it open, MLflow does not answer, or
            something was refused; the message names what is left.
    """
    outbox = Outbox.of_folder(folder, tracking_uri)
    try:
        check_reachable(outbox.run.tracking_uri)
        before = outbox.remaining()
        _deliver(outbox)
        undelivered = outbox.undelivered()
        if undelivered is not None:
            raise TrackingError(undelivered)
        where = f"MLflow at {mask(outbox.run.tracking_uri)}"
        if not before:
            return f"nothing to deliver: {where} has all of run {outbox.run.run_id}"
        return f"delivered to {where}: {listed(before)} of run {outbox.run.run_id}"
    finally:
        outbox.close()


def _deliver(outbox: Outbox) -> None:
    """Waits for as long as it goes forward."""
    left, moved = len(outbox.remaining()), time.monotonic()
    while not outbox.deliver(5.0, final=True) and time.monotonic() - moved < _STALLED_SECONDS:
        still = len(outbox.remaining())
        if still < left:
            left, moved = still, time.monotonic()
