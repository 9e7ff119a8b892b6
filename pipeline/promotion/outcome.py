"""What a comparison of two versions found."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.data.losses import Loss
from pipeline.evaluation.metrics import Metrics
from pipeline.promotion.bootstrap import Interval


@dataclass(frozen=True)
class Difference:
    """Candidate minus champion, with its 95 % interval; None where replicates were undefined."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        name: of the task.
        is_binary: whether it has an AUC and a calibration.
        is_probability: whether its score claims to be one (no weighting of classes in its loss).
        loss_name: which loss ``loss_rise`` is of.
        rows, positives: in its sample space; positives of binary tasks only.
        candidate, champion: metrics over all rows; champion None where it has no such task.
        auc_interval: of the candidate's AUC.
        calibration_interval: of the candidate's calibration.
        auc_difference: candidate minus champion.
        loss_rise: relative to the champion's loss.
    """

    name: str
    is_binary: bool
    is_probability: bool
    loss_name: str
    rows: int
    positives: int | None
    candidate: Metrics
    champion: Metrics | None
    auc_interval: Interval | None = None
    calibration_interval: Interval | None = None
    auc_difference: Difference | None = None
    loss_rise: Difference | None = None


@dataclass(frozen=True)
class SliceResult:
    """AUC of one binary task within one value of a column."""

    task: str
    column: str
    value: str
    rows: int
    positives: int
    candidate_auc: float
    champion_auc: float
    difference: Difference


@dataclass(frozen=True)
class Latency:
    """Milliseconds to score one row."""

    calls: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class VersionFacts:
    """A version apart from its scores."""

    name: str
    version: str
    bytes: int
    latency: Latency

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Comparison:
    """Everything the rules judge.

    Attributes:
        candidate, champion: the versions; no champion = a first promotion.
        data: which rows, in words.
        rows: how many were judged.
        losses: rows that could not be used, by file, row group and kind of fault.
        bootstrap: how intervals were made, in words.
        missing_tasks: the champion's tasks that the candidate lacks.
        remarks: what must be known to read the figures.
    """

    candidate: VersionFacts
    champion: VersionFacts | None
    data: str
    rows: int
    bootstrap: str
    tasks: tuple[TaskResult, ...]
    slices: tuple[SliceResult, ...]
    missing_tasks: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()
    remarks: tuple[str, ...] = field(default=())

    def tree(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)
