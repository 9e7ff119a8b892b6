"""Notices that a cluster is about to take a node away."""

import threading
from collections.abc import Callable

import ray.exceptions
import ray.train

_ASK_SECONDS = 5.0


class PreemptionWatch:
    """Asks Ray Train in a thread whether a node of the run is being reclaimed.

    Ray Train wants all workers to ask equally often: make one on every worker. Each notice is told
    once.

    Args:
        on_notice: called in the thread.
    """

    def __init__(self, on_notice: Callable[[], None]) -> None:
        self._on_notice = on_notice
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="preemption", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        seen: set[str] = set()
        while not self._closed.wait(_ASK_SECONDS):
            try:
                info = ray.train.get_preemption_info()
            except (RuntimeError, ray.exceptions.RayError):
                return  # the others have ended, or the run has
            if info is not None and not seen.issuperset(info.preempted_node_ids):
                seen.update(info.preempted_node_ids)
                self._on_notice()
