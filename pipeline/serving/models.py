"""The models of one process: each answers with its present version while the next one loads."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.registry.uris import TrackingError
from pipeline.serving.batching import MicroBatcher
from pipeline.serving.metrics import ServiceMetrics
from pipeline.serving.rows import RequestBody, RowReader
from pipeline.serving.versions import (
    LoadedVersion,
    VersionError,
    VersionId,
    VersionStore,
    without_paths,
)

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_LONGEST_RETRY_SECONDS = 600.0


class ServingVersion:
    """A loaded version with what a request needs: reader, batcher, names of the scores."""

    def __init__(
        self,
        name: str,
        loaded: LoadedVersion,
        config: ServingConfig,
        executor: Executor,
        metrics: ServiceMetrics,
    ) -> None:
        self.id = loaded.id
        self.tasks = loaded.scorer.task_names
        self.seconds = loaded.seconds
        schema, limits = loaded.scorer.schema, config.limits
        refuse = config.extra_fields == "refuse"
        self._strict = RowReader(schema, limits, refuse_extra=refuse)
        self._lenient = RowReader(schema, limits, refuse_extra=False)
        self._model_seconds = metrics.model_seconds.labels(name)
        self._scorer = loaded.scorer
        self._unknown_ids = {
            feature: metrics.unknown_ids.labels(name, feature)
            for feature in loaded.scorer.id_columns
        }
        self.batcher = MicroBatcher(
            self._score, config.batching, executor, metrics.batch_rows.labels(name).observe
        )

    def table(self, body: RequestBody, *, shadow: bool = False) -> pa.Table:
        """The request's rows for this version; a shadow passes over fields it does not know."""
        return body.table(self._lenient if shadow else self._strict)

    def _score(self, rows: pa.Table) -> np.ndarray:
        started = time.perf_counter()
        unknown: Counter[str] = Counter()
        scores_BT = self._scorer.score_table(rows, unknown)
        self._model_seconds.observe(time.perf_counter() - started)
        for feature, ids in unknown.items():
            if ids:
                self._unknown_ids[feature].inc(ids)
        return scores_BT


@dataclass
class _Failure:
    """The last attempt to load a version that did not work."""

    wanted: VersionId
    reason: str
    seconds: float
    next_try: float


class ServedModel:
    """One entry of ``serving.models``.

    Attributes:
        config: the entry.
        current: the version that answers; None before the first one is loaded.
    """

    def __init__(self, config: ServedModelConfig) -> None:
        self.config = config
        self.current: ServingVersion | None = None
        self.failure: _Failure | None = None

    @property
    def follows(self) -> bool:
        """Whether its URI may come to mean another version."""
        return "@" in self.config.uri

    def status(self) -> dict[str, object]:
        """For /health."""
        status: dict[str, object] = {"uri": self.config.uri, "version": None}
        if self.current is not None:
            status |= {"model": self.current.id.model, "version": self.current.id.version}
        if self.failure is not None:
            status["failure"] = self.failure.reason
        return status


class ServedModels:
    """All models of a process, kept at the versions their URIs mean.

    Belongs to one event loop; versions load in a thread of their own.
    """

    def __init__(
        self,
        models: list[ServedModelConfig],
        config: ServingConfig,
        store: VersionStore,
        metrics: ServiceMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.by_name = {model.name: ServedModel(model) for model in models}
        self.registry_fault: str | None = None
        self._config = config
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._loading = ThreadPoolExecutor(1, "ple-load", self._set_threads)
        self._scoring = ThreadPoolExecutor(1, "ple-score", self._set_threads)
        self._shadowing = ThreadPoolExecutor(1, "ple-shadow", self._set_threads)

    def _set_threads(self) -> None:
        torch.set_num_threads(self._config.threads or self._config.cpus_per_replica)

    async def start(self) -> None:
        """Loads every model.

        Raises:
            TrackingError, VersionError: a model that answers requests cannot be had. What only
                shadows or waits to be chosen is tried again later.
        """
        await self.refresh(first=True)

    async def follow(self) -> None:
        """Looks at the registry again and again; ends when cancelled."""
        while True:
            await asyncio.sleep(self._config.poll_seconds)
            try:
                await self.refresh()
            except Exception:  # the service must go on following, whatever happened once
                log.exception("following the registry")

    async def refresh(self, *, first: bool = False) -> None:
        """Brings every model to the version its URI means now."""
        for model in self.by_name.values():
            if model.current is not None and not model.follows:
                continue
            must = first and model.config.traffic > 0
            try:
                wanted = await self._in_thread(self._store.resolve, model.config.uri)
            except TrackingError as error:
                log.warning("%s: %s", model.config.name, error)
                self._metrics.registry_up.set(0)
                self.registry_fault = without_paths(str(error))
                if must:
                    raise
                continue
            self._metrics.registry_up.set(1)
            self.registry_fault = None
            try:
                await self._bring(model, wanted)
            except VersionError:
                if must:
                    raise

    async def _bring(self, model: ServedModel, wanted: VersionId) -> None:
        if model.current is not None and model.current.id == wanted:
            self._recovered(model)
            return
        failure = model.failure
        if failure and failure.wanted == wanted and self._clock() < failure.next_try:
            return
        name = model.config.name
        try:
            loaded = await self._in_thread(self._store.load, wanted)
        except VersionError as error:
            log.exception("%s stays at its version", name)
            self._failed(model, wanted, str(error))
            raise
        executor = self._shadowing if model.config.shadow else self._scoring
        previous = model.current
        # One assignment: requests before it go to the old version, those after it to the new one.
        model.current = ServingVersion(name, loaded, self._config, executor, self._metrics)
        if previous is not None:
            self._metrics.version.remove(name, previous.id.model, previous.id.version)
        self._metrics.version.labels(name, wanted.model, wanted.version).set(1)
        self._metrics.loads.labels(name, "ok").inc()
        self._recovered(model)
        log.warning("%s now serves %s, loaded in %.1f s", name, wanted.uri, loaded.seconds)

    def _failed(self, model: ServedModel, wanted: VersionId, reason: str) -> None:
        before = model.failure
        again = before is not None and before.wanted == wanted
        pause = min(2 * before.seconds, _LONGEST_RETRY_SECONDS) if before and again else 0.0
        pause = max(pause, self._config.poll_seconds)
        model.failure = _Failure(wanted, reason, pause, self._clock() + pause)
        self._metrics.loads.labels(model.config.name, "failed").inc()
        self._metrics.failing.labels(model.config.name).set(1)

    def _recovered(self, model: ServedModel) -> None:
        model.failure = None
        self._metrics.failing.labels(model.config.name).set(0)

    async def _in_thread(self, call: Callable[..., _T], *args: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._loading, call, *args)

    def close(self) -> None:
        """Lets go of the threads; calls that run are finished."""
        for executor in (self._loading, self._scoring, self._shadowing):
            executor.shutdown(wait=False, cancel_futures=True)
