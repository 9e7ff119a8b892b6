"""What a model costs: parameters and floating-point operations of its dense part, by counting."""

from dataclasses import dataclass

from torch import nn

from ple.ranker import Ranker


@dataclass(frozen=True)
class Cost:
    """Cost of a model, for comparisons at equal budgets.

    Attributes:
        parameters: trained numbers of the dense part; columns that are always zero do not count.
        flops_per_row: of the dense part's forward pass: two per weight of a matrix product and per
            value weighed by a gate. Element-wise functions are left out.
        table_parameters: numbers in the embedding tables.
    """

    parameters: int
    flops_per_row: int
    table_parameters: int


def cost(ranker: Ranker) -> Cost:
    """Counts a ranker, also one on the meta device; the same for every form of computation."""
    tables = () if ranker.embeddings is None else ranker.embeddings.tables
    dense = [ranker.crosses, ranker.extraction, ranker.towers]
    numbers = sum(parameter.numel() for part in dense for parameter in part.parameters())
    spare = sum(
        module.spare_weights()  # type: ignore[operator]
        for part in dense
        for module in part.modules()
        if hasattr(module, "spare_weights")
    )
    return Cost(
        parameters=numbers - spare,
        flops_per_row=sum(_flops(part) for part in dense),
        table_parameters=sum(table.rows * table.dim * table.slices for table in tables),
    )


def _flops(module: nn.Module) -> int:
    """A module that counts itself answers for its own operations; its parts are counted too,
    unless they are plain layers it has counted already."""
    if isinstance(module, nn.Linear):
        return 2 * module.weight.numel()
    counts_itself = hasattr(module, "flops_per_row")
    own: int = module.flops_per_row() if counts_itself else 0  # type: ignore[operator]
    return own + sum(
        _flops(child) for child in module.children() if not (counts_itself and _is_plain(child))
    )


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):
        return all(_is_plain(child) for child in module)
    return isinstance(module, nn.Linear)
