"""What a gate selects by: one stream or several.

Shape suffixes: B rows, D width of a stream.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ple.fusion import StreamShape
from ple.wiring import Output


def selector(output: Output, streams: Sequence[Tensor]) -> Tensor:
    """[B, D]: the sum of the streams a gate selects by, or (``joined``) one after the other."""
    first_BD, *others = (streams[position] for position in output.selectors)
    if output.joined:
        return torch.cat([first_BD, *others], dim=1)
    for other_BD in others:
        first_BD = first_BD + other_BD
    return first_BD


def selector_shape(output: Output, shapes: Sequence[StreamShape]) -> StreamShape:
    """Of what :func:`selector` gives."""
    selected = [shapes[position] for position in output.selectors]
    if not output.joined or len(selected) == 1:
        return selected[0]
    assert all(shape.width == shape.fan_in for shape in selected), "spare columns come last"
    width = sum(shape.width for shape in selected)
    return StreamShape(width, width)


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors without repeated objects, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())
