"""Slots: groups of Ray actors that run one training after another in the same processes.

Starting a worker group costs tens of seconds, a short training a few; so the processes stay, and
only the process group of torch is made anew for every run.
"""

import contextlib
import dataclasses
import gc
import os
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from pipeline.cluster.failure import Failure, failure_message
from pipeline.cluster.session import Placement
from pipeline.comparison.runs import RunSpec
from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.training.control import Control
from pipeline.training.report import Progress, Reporter, TrainingResult

# How long the other workers of a run may take to notice that one has failed.
_PATIENCE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class RunEnd:
    """How a run ended: with a result, or with why there is none.

    Attributes:
        result: what training left; None where it failed, or was asked to stop and did.
        seconds: of the run; what it took to fail, where it failed.
        failure: what to tell the user; empty where it did not fail.
        may_pass: whether another try may go better: something died or failed by surprise.
    """

    result: TrainingResult | None
    seconds: float
    failure: str = ""
    may_pass: bool = False


class Slot:
    """The workers of one run at a time.

    Args:
        placement: workers of a run, their device, CPUs and threads.
        worker: the actors' class.
    """

    def __init__(self, placement: Placement, worker: "type[SlotWorker] | None" = None) -> None:
        self._placement, self._worker = placement, worker or SlotWorker
        self._actors: list[Any] = []
        self._futures: list[Any] = []
        self._began = self._failing_since = 0.0
        self._asked: Any = None
        self._progress: Progress | None = None
        self.spec: RunSpec | None = None

    def start(self, spec: RunSpec, run_folder: Path) -> None:
        """Starts a run; its actors are made when the slot has none."""
        assert self.spec is None, "one run at a time"
        placement = self._placement
        if not self._actors:
            actor = ray.remote(
                num_cpus=placement.cpus_per_worker,
                num_gpus=1 if placement.device == "cuda" else 0,
                max_concurrency=2,
            )(self._worker)
            self._actors = [
                actor.remote(rank, placement.workers, placement.device, placement.threads)
                for rank in range(placement.workers)
            ]
        self.spec, self._began = spec, time.monotonic()
        self._failing_since = 0.0
        self._progress = self._asked = None
        hosts, address = [""], ""
        if placement.workers > 1:
            try:
                hosts = ray.get([actor.host.remote() for actor in self._actors])
                address = ray.get(self._actors[0].free_address.remote())
            except ray.exceptions.RayError:
                # The run below tells how the actor died.
                hosts = [""] * placement.workers
        local = Counter(hosts)
        tree = spec.experiment.model_dump(mode="json")
        self._futures = [
            actor.run.remote(tree, str(run_folder), address, local[host])
            for actor, host in zip(self._actors, hosts, strict=True)
        ]

    def poll(self, timeout: float) -> RunEnd | None:
        """Waits at most `timeout` seconds for the end of the run; None if it goes on."""
        done, running = ray.wait(self._futures, num_returns=len(self._futures), timeout=timeout)
        ends: list[TrainingResult | Failure | None] = []
        for future in done:
            try:
                ends.append(ray.get(future))
            except ray.exceptions.RayError as error:
                # The process died; the others wait for it in vain.
                return self._over(self._failed([], error), broken=True)
        failures = [end for end in ends if isinstance(end, Failure)]
        if failures:
            self._failing_since = self._failing_since or time.monotonic()
        if running and (not failures or time.monotonic() - self._failing_since < _PATIENCE_SECONDS):
            return None
        if failures:
            end = self._failed(failures, RuntimeError("see the worker's own message"))
            return self._over(end, broken=bool(running) or end.may_pass)
        result = next((end for end in ends if isinstance(end, TrainingResult)), None)
        seconds = self.elapsed() if result is None else result.seconds["total"]
        return self._over(RunEnd(result, seconds), broken=False)

    def progress(self) -> Progress | None:
        """Where the run is, as far as the chief has said; never waits."""
        try:
            if self._asked is None:
                self._asked = self._actors[0].progress.remote()
            elif ray.wait([self._asked], timeout=0)[0]:
                self._progress, self._asked = ray.get(self._asked), None
        except ray.exceptions.RayError:
            self._asked = None
        return self._progress

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def close(self) -> None:
        """Ends the processes; the next run gets new ones."""
        for actor in self._actors:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        self._actors = []

    def _failed(self, failures: list[Failure], error: Exception) -> RunEnd:
        message = failure_message(failures, self._placement.workers, error)
        return RunEnd(None, self.elapsed(), message, not any(f.expected for f in failures))

    def _over(self, end: RunEnd, broken: bool) -> RunEnd:
        self.spec, self._futures = None, []
        if broken:
            # Whatever it was, these processes may hold on to it.
            self.close()
        return end


class LatestProgress:
    """The reporter of a run: keeps the latest progress; the run's curve stays in its result."""

    def __init__(self) -> None:
        self.snapshot: Progress | None = None

    def progress(self, snapshot: Progress) -> None:
        self.snapshot = snapshot

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class SlotWorker:
    """One worker process; `run` and `progress` are called side by side."""

    def __init__(self, rank: int, world_size: int, device: str, threads: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._device, self._threads = device, threads
        self._latest = LatestProgress()

    def host(self) -> str:
        """The node this worker is on."""
        return str(ray.get_runtime_context().get_node_id())

    def free_address(self) -> str:
        """Host and port at which the workers of a run may meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def progress(self) -> Progress | None:
        return self._latest.snapshot

    def run(
        self, tree: dict[str, Any], run_folder: str, address: str, local_world_size: int
    ) -> TrainingResult | Failure | None:
        """Trains; the chief returns the result, the others None, any of them its failure."""
        self._latest = LatestProgress()
        # TorchRec's planner asks for it there.
        os.environ["LOCAL_WORLD_SIZE"] = str(local_world_size)
        try:
            return self.train(parse_experiment(tree), Path(run_folder), address, local_world_size)
        except Exception as error:
            return Failure.of(self._rank, error)

    def listener(self, experiment: Experiment) -> tuple[Reporter, Control | None]:
        """Who hears of a run, and who may end it."""
        return self._latest, None

    def train(
        self, experiment: Experiment, run_folder: Path, address: str, local_world_size: int
    ) -> TrainingResult | None:
        """Trains in a process group of this run; the chief's result."""
        # Slow imports, and only the workers need them.
        import torch
        import torch.distributed as dist

        from pipeline.training.worker import train_worker
        from pipeline.training.worker_context import WorkerContext

        # Ray shows each actor its own GPU only, as number 0.
        device = torch.device("cuda:0" if self._device == "cuda" else "cpu")
        context = WorkerContext(
            self._rank, self._world_size, local_world_size, device, self._threads
        )
        alone: dict[str, Any] = {"store": dist.HashStore()}
        together: dict[str, Any] = {"init_method": f"tcp://{address}"}
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=self._rank,
            world_size=self._world_size,
            **(alone if self._world_size == 1 else together),
        )
        try:
            began = time.perf_counter()
            reporter, control = self.listener(experiment)
            result = train_worker(experiment, context, run_folder, reporter, control)
            # Without the imports, which only the first run in a process waits for.
            result.seconds["total"] = time.perf_counter() - began
        finally:
            dist.destroy_process_group()
            # The model hangs in reference cycles; the next one should find its memory free.
            gc.collect()
        return result if context.is_chief else None
