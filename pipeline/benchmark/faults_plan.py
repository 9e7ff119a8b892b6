"""Which faults are injected, and when: drawn from a seed."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.checkpoint.marker import MARKER

Kind = Literal["worker", "driver", "node", "stop", "checkpoint", "mlflow"]
Damage = Literal["flipped byte", "cut file", "missing file", "missing marker", "wrong marker"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DAMAGES: tuple[Damage, ...] = get_args(Damage)
# A second fault meets the run that has just been taken up again.
_SECOND_FAULT = 0.3


@dataclass(frozen=True)
class Fault:
    """One fault and its moment.

    Attributes:
        kind: ``worker``: kill -9 of one; ``driver``, ``node``: of all that goes with it; ``stop``:
            SIGTERM; ``checkpoint``: a kill, and the newest checkpoint damaged; ``mlflow``: kill -9
            of the server.
        phase: what the run is to be doing.
        step: not before that step.
        delay: seconds from then on.
        victim: rank of the worker that is killed, or watched.
        damage: what is done to the checkpoint, by ``draw``.
        draw: seed of what else is random.
    """

    kind: Kind
    phase: str
    step: int
    delay: float
    victim: int
    damage: Damage | None
    draw: int

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.damage}" if self.damage else self.kind

    @property
    def moment(self) -> str:
        return f"{self.phase} from step {self.step}"


@dataclass(frozen=True)
class Range:
    """What faults are drawn from.

    Attributes:
        kinds: of faults.
        phases: moments of a run.
        more_phases: moments of a run that was taken up again, besides those.
        never: kinds and phases that do not go together.
        steps, workers: of a run.
        delay: longest time from a moment to the fault, in seconds.
    """

    kinds: Sequence[Kind]
    phases: Sequence[str]
    more_phases: Sequence[str]
    never: Collection[tuple[Kind, str]]
    steps: int
    workers: int
    delay: float

    def draw(self, rng: random.Random) -> list[Fault]:
        """The faults of one trial: one, or two one after the other."""
        faults = [self._fault(rng, self.phases)]
        if rng.random() < _SECOND_FAULT:
            faults.append(self._fault(rng, [*self.phases, *self.more_phases]))
        return faults

    def _fault(self, rng: random.Random, phases: Sequence[str]) -> Fault:
        kind = rng.choice(self.kinds)
        return Fault(
            kind=kind,
            phase=rng.choice([phase for phase in phases if (kind, phase) not in self.never]),
            # The last steps are left for what comes at the end.
            step=rng.randrange(1, self.steps - 4),
            # Short ones more often: many moments are short.
            delay=rng.random() ** 2 * self.delay,
            victim=rng.randrange(self.workers),
            damage=rng.choice(DAMAGES) if kind == "checkpoint" else None,
            draw=rng.randrange(2**31),
        )


def uncommitted(checkpoints: Path) -> list[Path]:
    """Folders of checkpoints that are being written, or never will be."""
    return [f for f in _folders(checkpoints) if not (f / MARKER).exists()]


def damage_newest(checkpoints: Path, fault: Fault) -> Path | None:
    """Does to the newest committed checkpoint what the fault says; None = there is none yet."""
    whole = [f for f in _folders(checkpoints) if (f / MARKER).exists()]
    if not whole:
        return None
    folder, rng = whole[-1], random.Random(fault.draw)
    files = sorted(f for f in folder.iterdir() if f.name != MARKER and f.stat().st_size)
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    if fault.damage == "flipped byte":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif fault.damage == "cut file":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif fault.damage == "missing file":
        file.unlink()
    elif fault.damage == "missing marker":
        (folder / MARKER).unlink()
    else:
        others = whole[:-1]
        text = (others[-1] / MARKER).read_bytes() if others else b"{}"
        (folder / MARKER).write_bytes(text)
    return folder


def _folders(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("step-*"))
