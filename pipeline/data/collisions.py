"""How many ids are expected to share a table row with another when they are hashed.

``hashing.expected_collision_rate`` gives the share of the distinct ids; here it meets the counts
that jobs.prepare made of a dataset's columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.features import FeaturesConfig
from pipeline.data.hashing import expected_collision_rate

# What jobs.prepare proposes: one id in five shares its row; that takes about 4.5 rows per id.
PROPOSED_RATE = 0.2
# Beyond this a training run says so: every third id shares its row.
NOTED_RATE = 0.3

# Before a count, and before a rate that follows from it.
_SAID = {
    "exactly": ("", ""),
    "at least": ("at least ", "at least "),
    "at most": ("at most ", "up to "),
}


@dataclass(frozen=True)
class HashedFeature:
    """What is expected of a hashed feature.

    Attributes:
        feature: its name.
        key: where the configuration sets its rows.
        rows: of its table, the missing ids' row included.
        unit: what is hashed, ids or pairs of them.
        distinct: how many different ones the train split has.
        counted: whether ``distinct``, and so ``rate``, is exact or a bound.
        rate: expected share of them that share a row with another.
    """

    feature: str
    key: str
    rows: int
    unit: Literal["ids", "pairs"]
    distinct: int
    counted: Literal["exactly", "at least", "at most"]
    rate: float

    def note(self) -> str | None:
        """What to tell the user; None where few enough ids are expected to collide."""
        if self.rate <= NOTED_RATE:
            return None
        count, share = _SAID[self.counted]
        return (
            f"{self.key}: {count}{self.distinct:,} {self.unit} in {self.rows:,} rows: "
            f"{share}{self.rate:.0%} of them are expected to share a row with another; "
            f"rows={rows_for(self.distinct, PROPOSED_RATE)} makes it {share}{PROPOSED_RATE:.0%}"
        )


def rows_for(distinct: int, rate: float) -> int:
    """The smallest table, its row of missing ids included, with no more than this expected rate."""
    if distinct < 2:
        return 2
    hashed = math.ceil(-1.0 / math.expm1(math.log1p(-rate) / (distinct - 1)))
    return max(hashed, 1) + 1


def expected_rate(distinct: int, rows: int) -> float:
    """Expected collision rate of ids in a table whose first row is for missing ids."""
    return expected_collision_rate(distinct, rows - 1)


def hashed_features(
    features: FeaturesConfig, statistics: Mapping[str, Any], train_rows: int
) -> list[HashedFeature]:
    """Every hashed feature and cross whose ids jobs.prepare counted.

    Of the pairs of a cross no more than all combinations, or one per row, can occur.
    """
    seen = statistics.get("categorical", {})
    found = []
    for feature in features.categorical:
        if feature.encoder == "hash" and feature.name in seen and feature.rows is not None:
            distinct = seen[feature.name]["distinct"]
            exact = seen[feature.name]["vocabulary"] is not None
            rate = expected_rate(distinct, feature.rows)
            key = f"features.categorical.{feature.name}.rows"
            counted: Literal["exactly", "at least"] = "exactly" if exact else "at least"
            found.append(
                HashedFeature(feature.name, key, feature.rows, "ids", distinct, counted, rate)
            )
    for cross in features.crosses:
        if all(name in seen and seen[name]["vocabulary"] is not None for name in cross.columns):
            first, second = (seen[name]["distinct"] for name in cross.columns)
            distinct = min(first * second, train_rows)
            rate = expected_rate(distinct, cross.rows)
            key = f"features.crosses.{cross.name}.rows"
            found.append(
                HashedFeature(cross.name, key, cross.rows, "pairs", distinct, "at most", rate)
            )
    return found
