"""How a level of plain experts and gates runs as one function: what reads which stream.

The plan depends on the wiring and on which of the level's streams are the same tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ple.wiring import LevelWiring, Output


@dataclass(frozen=True)
class LevelPlan:
    """Work by stream.

    Attributes:
        streams: positions of the distinct streams that experts read.
        banks: for each of them the positions of the banks that read it.
        gates: for each of them the outputs whose gates select by it.
        mixes: for each gate in that order the experts it mixes, counted over all banks in order.
        place: for each output its place in that order.
    """

    streams: tuple[int, ...]
    banks: tuple[tuple[int, ...], ...]
    gates: tuple[tuple[int, ...], ...]
    mixes: tuple[tuple[int, ...], ...]
    place: tuple[int, ...]


def same_streams(streams: Sequence[Tensor]) -> tuple[int, ...]:
    """For each stream the position of the first that is the same tensor."""
    seen: dict[int, int] = {}
    return tuple(seen.setdefault(id(stream), n) for n, stream in enumerate(streams))


def plan_level(wiring: LevelWiring, same: Sequence[int]) -> LevelPlan | None:
    """The plan, if every output is a gated sum of experts and nothing else: no feature gates, and
    every gate selects by one stream that some experts read.

    Args:
        wiring: the level.
        same: what :func:`same_streams` gives of its streams.
    """
    banks = [n for n, bank in enumerate(wiring.banks) if bank.experts]
    reads = {n: same[wiring.banks[n].reads] for n in banks}
    streams = tuple(dict.fromkeys(reads.values()))
    if any(wiring.banks[n].feature_gated for n in banks) or not all(
        _is_plain(output) and same[output.selectors[0]] in streams for output in wiring.outputs
    ):
        return None
    by_stream = tuple(tuple(n for n in banks if reads[n] == stream) for stream in streams)
    gates = tuple(
        tuple(g for g, o in enumerate(wiring.outputs) if same[o.selectors[0]] == stream)
        for stream in streams
    )
    first: dict[int, int] = {}
    experts = 0
    for n in (n for own in by_stream for n in own):
        first[n] = experts
        experts += wiring.banks[n].experts
    order = [g for own in gates for g in own]
    mixes = tuple(
        tuple(
            first[n] + expert
            for n in wiring.outputs[g].banks
            if n in first
            for expert in range(wiring.banks[n].experts)
        )
        for g in order
    )
    place = tuple(order.index(g) for g in range(len(order)))
    return LevelPlan(streams, by_stream, gates, mixes, place)


def _is_plain(output: Output) -> bool:
    more = output.native is not None or output.self_gated is not None
    return output.gated and len(output.selectors) == 1 and not output.stopped and not more
