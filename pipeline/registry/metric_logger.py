"""Step metrics to MLflow, beside the run that posts them."""

import threading
from collections.abc import Mapping

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.registry.tracking import MetricPoint, TrackedRun, metric_points, write_points
from pipeline.registry.uris import mask

# Points held while MLflow does not answer; beyond that the oldest are dropped and counted.
_HELD_POINTS = 100_000


class MetricLogger:
    """Sends metrics of a run in batches from a thread of its own.

    ``log`` costs microseconds and never raises. What could not be sent is kept and sent again;
    ``close`` says how many points never arrived.

    Attributes:
        dropped: points given up because too many were waiting.
        last_error: why the latest attempt failed, None after a success.
    """

    def __init__(self, run: TrackedRun, interval_seconds: float = 2.0) -> None:
        self._client = MlflowClient(tracking_uri=run.tracking_uri)
        self._run_id = run.run_id
        self._interval = interval_seconds
        self._lock = threading.Lock()
        self._waiting: list[MetricPoint] = []
        self._sending: list[MetricPoint] = []
        self._closing = threading.Event()
        self.dropped = 0
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Queues one step's metrics, stamped with the present time."""
        points = metric_points(values, step)
        with self._lock:
            self._waiting += points
            self._drop_excess()

    def close(self, timeout_seconds: float = 30.0) -> int:
        """Sends what is left, waiting at most that long; returns the number of lost points."""
        self._closing.set()
        self._thread.join(timeout_seconds)
        with self._lock:
            return self.dropped + len(self._sending) + len(self._waiting)

    def _send_until_closed(self) -> None:
        while not self._closing.wait(self._interval):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            self._sending, self._waiting = self._waiting, []
        try:
            write_points(self._client, self._run_id, self._sending)
            self.last_error = None
        except (MlflowException, OSError) as error:
            self.last_error = mask(str(error))
            with self._lock:
                self._waiting = self._sending + self._waiting
                self._drop_excess()
        with self._lock:
            self._sending = []

    def _drop_excess(self) -> None:
        excess = len(self._waiting) - _HELD_POINTS
        if excess > 0:
            del self._waiting[:excess]
            self.dropped += excess
