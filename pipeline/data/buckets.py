"""Where the buckets of a number column begin, from what was seen of it in the train split."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# Steps of a column kept in the statistics; the most buckets a feature may have is half of it.
STEPS = 2_048


def value_steps(values: Floats, most: int = STEPS) -> tuple[Floats, Counts]:
    """The distinct values and the rows of each; where there are too many, some share a step.

    A value that fills a step alone keeps its own, so a value that most rows share costs one step
    and not most of them; the others share what is left, each step with about as many rows (the rule
    by which gradient-boosted trees bin numbers).

    Args:
        values: finite numbers in any order.
        most: steps to return at most.

    Returns:
        The smallest value of each step, ascending, and the rows of each.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= most:
        return distinct, counts.astype(np.int64)
    frequent = np.zeros(distinct.size, bool)
    while True:
        # A frequent value ends the step before it early, hence two for each.
        free = max(1, most - 2 * int(frequent.sum()))
        share = counts[~frequent].sum() / free
        more = frequent | (counts >= share)
        if free == 1 or more.sum() == frequent.sum():
            break
        frequent = more
    begins, held = [0], int(counts[0])
    for i in range(1, distinct.size):
        alone = frequent[i] or frequent[i - 1]
        if alone or held + counts[i] > share:
            begins.append(i)
            held = 0
        held += int(counts[i])
    starts = np.asarray(begins[:most])
    return distinct[starts], np.add.reduceat(counts, starts).astype(np.int64)


def step_edges(values: Floats, counts: Counts, buckets: int, least: float) -> Floats:
    """Inner edges of at most ``buckets`` buckets, where frequent values are alone.

    A step with ``least`` rows has a bucket of its own. Neighbours with fewer gather until they have
    that many together, or until the next frequent one: a bucket of few rows does less harm than a
    frequent value that is mixed with others.

    Args:
        values, counts: as :func:`value_steps` gives them.
        buckets: most buckets; where there would be more, edges are left out evenly.
        least: rows that earn a bucket.
    """
    begins: list[int] = []
    held = least
    for i, count in enumerate(counts):
        if held >= least or count >= least:
            begins.append(i)
            held = 0.0
        held += count
    edges = values[begins[1:]]
    if edges.size >= buckets:
        positions = (np.arange(1, buckets) * (edges.size + 1) + buckets // 2) // buckets
        edges = edges[positions - 1]
    return np.asarray(edges, np.float64)


def quantile_edges(quantiles: list[float] | None, buckets: int) -> Floats:
    """Inner edges of at most ``buckets`` buckets, spread evenly over the distinct quantiles.

    Where every row has a value of its own that fills buckets equally. Where most rows share one
    value (gains that are zero for 96 of 100) it does not spend all edges on that value: the few
    rows that say something get buckets too.
    """
    if not quantiles:
        return np.empty(0, np.float64)
    values = np.unique(np.asarray(quantiles, np.float64))
    count = min(buckets, values.size)
    positions = (np.arange(1, count) * values.size + count // 2) // count
    return values[positions]
