"""One request from body to answer: choose a model, read the rows, score them, compare shadows."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic_core

from pipeline.config.serving import ServedModelConfig, ServingConfig
from pipeline.registry.columns import RowError
from pipeline.serving.arrow_stream import scores_stream
from pipeline.serving.body import RequestError, shown
from pipeline.serving.metrics import ServiceMetrics
from pipeline.serving.models import ServedModels, ServingVersion
from pipeline.serving.rows import RequestBody
from pipeline.serving.traffic import TrafficSplit, share_of
from pipeline.serving.versions import VersionStore

# Requests that may wait for one shadow model; beyond, a shadow leaves requests out.
_SHADOW_BACKLOG = 64


def _bad_value(fault: RowError) -> RequestError:
    where = shown(fault.field) if fault.row is None else f"rows[{fault.row}].{shown(fault.field)}"
    message = f"{where} {fault.problem}"
    return RequestError(422, "bad_value", message, field=fault.field, row=fault.row)


@dataclass(frozen=True)
class ScoredRequest:
    """The scores of one request, and who gave them."""

    name: str
    version: ServingVersion
    scores_BT: np.ndarray

    def json(self) -> bytes:
        """``{"name", "model", "version", "scores": {TASK: [SCORE of each row]}}``."""
        columns = dict(zip(self.version.tasks, self.scores_BT.T.tolist(), strict=True))
        tree = {
            "name": self.name,
            "model": self.version.id.model,
            "version": self.version.id.version,
            "scores": columns,
        }
        return pydantic_core.to_json(tree)

    def arrow(self) -> bytes:
        """An Arrow IPC stream: a column per task; name, model and version as schema metadata."""
        identity = {
            "name": self.name,
            "model": self.version.id.model,
            "version": self.version.id.version,
        }
        stream: bytes = scores_stream(self.scores_BT, self.version.tasks, identity).to_pybytes()
        return stream


class ScoringService:
    """The service of one process, without HTTP. Belongs to one event loop.

    Args:
        config: the section ``serving``.
        models: its models, at least one of which has traffic.
        store: where versions come from.
    """

    def __init__(
        self, config: ServingConfig, models: list[ServedModelConfig], store: VersionStore
    ) -> None:
        self.config = config
        self.metrics = ServiceMetrics()
        self.models = ServedModels(models, config, store, self.metrics)
        self._split = TrafficSplit(models)
        self._shadows = [model for model in models if model.shadow]
        self._background: set[asyncio.Task[None]] = set()
        for model in self.models.by_name.values():
            gauge = self.metrics.queued_rows.labels(model.config.name)
            gauge.set_function(
                lambda m=model: m.current.batcher.queued_rows if m.current else 0  # type: ignore[misc]
            )

    async def start(self) -> None:
        """Loads every model, then follows the aliases. Raises TrackingError, VersionError."""
        await self.models.start()
        self._follow(self.models.follow())

    async def score(
        self,
        body: bytes,
        *,
        key: str | None = None,
        name: str | None = None,
        arrow: bool = False,
    ) -> ScoredRequest:
        """Scores the rows of a body.

        Args:
            body: JSON, see ``parse_body``; or an Arrow stream, see ``parse_arrow``.
            key: requests of one key meet the same model; None = any.
            name: the entry of ``serving.models`` to ask, None = as traffic is split.
            arrow: which of the two the body is.

        Raises:
            RequestError: with the status to answer.
        """
        started = time.perf_counter()
        request = RequestBody(body, arrow=arrow, limits=self.config.limits)
        name = self._split.choose(key) if name is None else self._chosen(name)
        version = self.models.by_name[name].current
        if version is None:
            raise RequestError(503, "not_loaded", f"{name} is not loaded; /health says why")
        try:
            rows = version.table(request)
            scores_BT = await version.batcher.scores(rows)
        except RowError as fault:  # good values that do not go together, such as ids and weights
            raise _bad_value(fault) from None
        scored = ScoredRequest(name, version, scores_BT)
        at = version.id
        self.metrics.rows.labels(name, at.version).inc(rows.num_rows)
        self.metrics.request_rows.observe(rows.num_rows)
        self.metrics.seconds.observe(time.perf_counter() - started)
        self._shadow(request, scored, key)
        return scored

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether every model with traffic is loaded, and the state of all."""
        states = {name: model.status() for name, model in self.models.by_name.items()}
        ready = all(
            model.current is not None
            for model in self.models.by_name.values()
            if model.config.traffic
        )
        failing = any("failure" in state for state in states.values())
        fault = self.models.registry_fault
        status = ("degraded" if failing or fault else "ready") if ready else "not ready"
        tree: dict[str, Any] = {"status": status, "models": states}
        if fault:
            tree["registry"] = fault
        return ready, tree

    async def close(self) -> None:
        """Ends what runs beside the requests."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.models.close()

    def _chosen(self, name: str) -> str:
        if not self.config.choose_version:
            raise RequestError(
                403, "version_not_free", "?version= is off here (serving.choose_version)"
            )
        if name not in self.models.by_name:
            known = ", ".join(self.models.by_name)
            raise RequestError(
                404, "unknown_version", f"no version {shown(name)}; there are: {known}"
            )
        return name

    def _shadow(self, request: RequestBody, answer: ScoredRequest, key: str | None) -> None:
        for config in self._shadows:
            if config.shadow < 1:
                share = np.random.random() if key is None else share_of(key, config.name)
                if share >= config.shadow:
                    continue
            count = self.metrics.shadow_requests
            version = self.models.by_name[config.name].current
            if version is None:
                count.labels(config.name, "not_loaded").inc()
            elif len(self._background) > _SHADOW_BACKLOG:
                count.labels(config.name, "left_out").inc()
            else:
                self._follow(self._compare(config.name, version, request, answer))

    async def _compare(
        self, name: str, version: ServingVersion, request: RequestBody, answer: ScoredRequest
    ) -> None:
        """Scores the rows with a shadow and records how far it is from what was returned."""
        count = self.metrics.shadow_requests
        try:
            scores_BT = await version.batcher.scores(version.table(request, shadow=True))
        except Exception:  # a shadow's fault is no one else's
            count.labels(name, "failed").inc()
            return
        returned: Mapping[str, int] = {task: at for at, task in enumerate(answer.version.tasks)}
        for at, task in enumerate(version.tasks):
            if task in returned:
                apart_B = np.abs(scores_BT[:, at] - answer.scores_BT[:, returned[task]])
                self.metrics.shadow.observe(name, task, apart_B)
        count.labels(name, "scored").inc()

    def _follow(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._background.discard)
