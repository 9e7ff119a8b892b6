"""What a person sees of a run: a live line on a terminal, plain lines elsewhere, final tables."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.training.report import Progress

_PLAIN_SECONDS = 5.0
_PLAIN_STATUS_SECONDS = 15.0


class RunConsole:
    """Prints notes and progress; as a context manager it owns the live line."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self._live: Live | None = None
        self._first: tuple[float, int] | None = None
        self._last_plain = 0.0
        self._last_phase = ""
        self._rate = 0.0
        self._losses: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def status(self, text: str) -> None:
        """Says where a long job is: on the live line, or in a plain line every few seconds."""
        if self._live is not None:
            self._live.update(Text(text))
        elif time.monotonic() - self._last_plain >= _PLAIN_STATUS_SECONDS:
            self._last_plain = time.monotonic()
            self.note(text)

    def progress(self, snapshot: Progress) -> None:
        """Shows where the run is: a live line, or a plain one every few seconds."""
        if self._first is None:
            self._first = (time.monotonic(), snapshot.step)
        self._rate = snapshot.examples_per_second or self._rate
        self._losses = snapshot.losses or self._losses
        parts = self._parts(snapshot)
        if self._live is not None:
            self._live.update(Text("\n".join(parts)))
            return
        now = time.monotonic()
        if snapshot.phase != self._last_phase or now - self._last_plain >= _PLAIN_SECONDS:
            self._last_plain, self._last_phase = now, snapshot.phase
            self.note(" · ".join(parts))

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table that stays; every column but the first is aligned right."""
        self.note(title)
        # Without vertical lines the final table fits a terminal of eighty columns.
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def _parts(self, snapshot: Progress) -> list[str]:
        """Where the run is; losses; validation AUCs: one line each on a terminal."""
        where = [
            f"{snapshot.phase}: epoch {snapshot.epoch}/{snapshot.epochs}",
            f"step {snapshot.step}/{snapshot.total_steps}",
        ]
        if self._rate:
            where.append(f"{self._rate:,.0f} examples/s")
        if snapshot.phase == "training" and self._rate:
            where.append(f"ETA {self._eta(snapshot)}")
        parts = [" · ".join(where)]
        if self._losses:
            parts.append("loss " + " ".join(f"{k} {v:.4f}" for k, v in self._losses.items()))
        aucs = {
            task: metrics["auc"]
            for task, metrics in snapshot.validation.items()
            if isinstance(metrics.get("auc"), float)
        }
        if aucs:
            parts.append("valid AUC " + " ".join(f"{k} {v:.4f}" for k, v in aucs.items()))
        return parts

    def _eta(self, snapshot: Progress) -> str:
        # From the first snapshot on, evaluations included; until then there is nothing to go by
        # but the speed of the first steps.
        assert self._first is not None
        first_time, first_step = self._first
        steps_left = snapshot.total_steps - snapshot.step
        if snapshot.step > first_step:
            left = (time.monotonic() - first_time) / (snapshot.step - first_step) * steps_left
        else:
            left = steps_left * snapshot.batch_size / self._rate
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"


def _console() -> Console:
    console = Console(highlight=False)
    # A log file has no width; eighty columns would cut every table short.
    return console if console.is_terminal else Console(highlight=False, width=140)


def budget_line(shares: Mapping[str, float]) -> str:
    """Shares of a run's time by phase, largest first."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.1%}" for name, share in ordered)


def metric_table(
    splits: dict[str, dict[str, dict[str, Any]]],
    ceilings: dict[str, dict[str, dict[str, float]]],
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the final table; columns that no task fills are left out."""
    rows = []
    for split, tasks in splits.items():
        for task, metrics in tasks.items():
            ceiling = ceilings.get(split, {}).get(task, {}).get("auc")
            rows.append(
                [
                    task,
                    split,
                    _shown(metrics, "auc"),
                    "" if ceiling is None else f"{ceiling:.4f}",
                    _shown(metrics, "gauc"),
                    _shown(metrics, "logloss"),
                    _shown(metrics, "normalized_entropy"),
                    _shown(metrics, "calibration"),
                    _shown(metrics, "rmse"),
                    _shown(metrics, "mae"),
                    _shown(metrics, "r2"),
                    _shown(metrics, "xauc"),
                    f"{metrics['rows']:,}",
                    f"{metrics['positives']:,}" if "positives" in metrics else "",
                ]
            )
    filled = [number for number in range(len(_COLUMNS)) if any(row[number] for row in rows)]
    return [_COLUMNS[n] for n in filled], [[row[n] for n in filled] for row in rows]


_COLUMNS = [
    "task",
    "split",
    "AUC",
    "best AUC",
    "GAUC",
    "log loss",
    "NE",
    "calib.",
    "RMSE",
    "MAE",
    "R²",
    "XAUC",
    "rows",
    "positives",
]


def _shown(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    value = metrics[name]
    return f"{value:.4f}" if isinstance(value, float) else "undefined"
