"""The world behind the generated click log: who likes what, and the true probabilities.

Shapes: B rows, T tasks, K taste factors, J list elements of B rows, U users, I items.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TASKS = ("click", "convert", "like")
BIAS_T = np.array([-1.4, -1.15, -2.6], dtype=np.float32)
CLICK_CONVERT_CORRELATION = 0.5

CATEGORIES = tuple(f"category_{n:02d}" for n in range(40))
DEVICES = ("android", "ios", "web", "tv", "tablet")
CITIES, HOURS, TAGS = 200, 24, 120
LONGEST_TAGS, LONGEST_INTERESTS, TASTES = 5, 6, 2

# Standard deviation of the effect of one id (of one element, for lists) on a logit.
SPREAD = {
    "user": 0.4,
    "item": 0.35,
    "category": 0.6,
    "city": 0.15,
    "device": 0.3,
    "hour": 0.3,
    "tag": 0.2,
    "interest": 0.5,
    "taste": 0.2,
}
# Popularity: P(rank r) falls as r to the power of minus this.
SKEW = {"user": 0.5, "item": 0.8, "category": 0.5, "city": 0.7, "tag": 0.8, "interest": 0.6}

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class World:
    """Fixed properties and effects of every user, item and other id, drawn once from the seed.

    Args:
        seed: of everything here.
        users, items: distinct ids.
        correlation: between an id's effects on click and on like.
    """

    def __init__(self, seed: int, users: int, items: int, correlation: float) -> None:
        self.users, self.items = users, items
        random = np.random.default_rng([seed, len(SPREAD)])
        self._mixing_TT = _mixing(correlation)
        effect = {
            name: self._effects(random, name, size)
            for name, size in {
                "category": len(CATEGORIES),
                "tag": TAGS,
                "city": CITIES,
                "device": len(DEVICES),
                "hour": HOURS,
                "interest": len(CATEGORIES),
            }.items()
        }
        self._device_DT, self._hour_HT = effect["device"], effect["hour"]
        self._interest_CT = effect["interest"]

        self._city_U = _power_law(random.random(users), CITIES, SKEW["city"])
        self._age_U = random.normal(38, 14, users).clip(16, 90).round().astype(np.float32)
        self._age_U[random.random(users) < 0.1] = np.nan
        self._user_UT = self._effects(random, "user", users)
        self._user_UT += effect["city"][self._city_U] + _age_curve(self._age_U)

        self._category_I = _power_law(random.random(items), len(CATEGORIES), SKEW["category"])
        self._log_price_I = random.normal(2.5, 0.8, items).astype(np.float32)
        self._tag_count_I = random.integers(1, LONGEST_TAGS + 1, items)
        self._tags_IJ = _power_law(random.random((items, LONGEST_TAGS)), TAGS, SKEW["tag"])
        self._item_IT = self._effects(random, "item", items) + effect["category"][self._category_I]
        for position in range(LONGEST_TAGS):
            has_tag = (position < self._tag_count_I)[:, None]
            self._item_IT += has_tag * effect["tag"][self._tags_IJ[:, position]]

        # <taste, topic> has the deviation SPREAD["taste"]: a sum of K products of Gaussians.
        scale = np.sqrt(SPREAD["taste"] / np.sqrt(TASTES))
        tastes, topics = (users, len(TASKS), TASTES), (len(CATEGORIES), len(TASKS), TASTES)
        self._taste_UTK = scale * random.standard_normal(tastes, dtype=np.float32)
        self._topic_CTK = scale * random.standard_normal(topics, dtype=np.float32)

    def draw(self, random: np.random.Generator, rows: int) -> tuple[dict[str, pa.Array], Floats]:
        """Features of `rows` impressions by column name, and probabilities_BT of their labels."""
        user_B = _power_law(random.random(rows), self.users, SKEW["user"])
        item_B = _power_law(random.random(rows), self.items, SKEW["item"])
        category_B = self._category_I[item_B]
        device_B = random.integers(0, len(DEVICES), rows)
        hour_B = random.integers(0, HOURS, rows)
        logits_BT = BIAS_T + self._user_UT[user_B]
        logits_BT += self._item_IT[item_B]
        logits_BT += self._device_DT[device_B]
        logits_BT += self._hour_HT[hour_B]
        logits_BT += np.einsum("btk,btk->bt", self._taste_UTK[user_B], self._topic_CTK[category_B])

        lengths_B, interest_J, weight_J = _draw_interests(random, rows)
        logits_BT += _sum_lists(weight_J[:, None] * self._interest_CT[interest_J], lengths_B)

        noise_B = random.standard_normal(rows, dtype=np.float32)
        price_B = np.exp(self._log_price_I[item_B] + np.float32(0.3) * noise_B)
        since_B = random.standard_exponential(rows, dtype=np.float32) * np.float32(24)
        since_B[random.random(rows, dtype=np.float32) < 0.15] = np.nan
        depth_B = np.floor(random.standard_exponential(rows, dtype=np.float32) * np.float32(8))
        logits_BT += _price_curve(price_B) + _recency_curve(since_B) + _depth_curve(depth_B)

        features = {
            "user_id": pa.array(_identity(user_B, 0x9E3779B1)),
            "item_id": pa.array(_identity(item_B, 0x85EBCA6B)),
            "category": _names(category_B, CATEGORIES),
            "city": pa.array(self._city_U[user_B]),
            "device": _names(device_B, DEVICES),
            "hour": pa.array(hour_B),
            "item_tags": self._tag_lists(item_B),
            "interests": _lists(lengths_B, _names(interest_J, CATEGORIES)),
            "interest_weights": _lists(lengths_B, pa.array(weight_J)),
            "age": pa.array(self._age_U[user_B], from_pandas=True),
            "price": pa.array(price_B),
            "hours_since_visit": pa.array(since_B, from_pandas=True),
            "session_depth": pa.array(depth_B),
        }
        return features, 1 / (1 + np.exp(-logits_BT))

    def _effects(self, random: np.random.Generator, name: str, size: int) -> Floats:
        independent = random.standard_normal((size, len(TASKS)))
        return (SPREAD[name] * independent @ self._mixing_TT).astype(np.float32)

    def _tag_lists(self, item_B: Ints) -> pa.Array:
        lengths_B = self._tag_count_I[item_B]
        chosen_BJ = np.arange(LONGEST_TAGS) < lengths_B[:, None]
        return _lists(lengths_B, pa.array(self._tags_IJ[item_B][chosen_BJ]))


def _mixing(correlation: float) -> npt.NDArray[np.float64]:
    """Columns turn independent Gaussians into effects on click, convert and like."""
    nested = CLICK_CONVERT_CORRELATION
    return np.array(
        [
            [1.0, nested, correlation],
            [0.0, np.sqrt(1 - nested**2), 0.0],
            [0.0, 0.0, np.sqrt(1 - correlation**2)],
        ]
    )


def _power_law(uniform: npt.NDArray[np.float64], size: int, skew: float) -> Ints:
    """Ranks 0 … size-1 by the inverse of a continuous power law: no table, any size."""
    power = 1 - skew
    ranks = (uniform * ((size + 1) ** power - 1) + 1) ** (1 / power) - 1
    return np.minimum(ranks, size - 1).astype(np.int64)


def _identity(rank: Ints, multiplier: int) -> Ints:
    """An id without order: multiplication by an odd number permutes the residues of 2^31."""
    return rank * multiplier % (1 << 31)


def _draw_interests(random: np.random.Generator, rows: int) -> tuple[Ints, Ints, Floats]:
    lengths_B = random.integers(0, LONGEST_INTERESTS + 1, rows)
    elements = int(lengths_B.sum())
    interest_J = _power_law(random.random(elements), len(CATEGORIES), SKEW["interest"])
    weight_J = np.float32(1) - random.random(elements, dtype=np.float32)
    return lengths_B, interest_J, weight_J


def _sum_lists(values_JT: Floats, lengths_B: Ints) -> Floats:
    starts = np.cumsum(lengths_B) - lengths_B
    filled = lengths_B > 0
    sums_BT = np.zeros((len(lengths_B), values_JT.shape[1]), dtype=np.float32)
    sums_BT[filled] = np.add.reduceat(values_JT, starts[filled], axis=0)
    return sums_BT


def _age_curve(age: Floats) -> Floats:
    bend = ((age - 38) / 15) ** 2 - 1
    return _curve(bend, [-0.15, 0.05, 0.1], missing=[-0.3, -0.1, 0.2])


def _price_curve(price: Floats) -> Floats:
    slope = np.log(price) - np.float32(2.5)
    return _curve(slope, [-0.2, -0.4, 0.05])


def _recency_curve(hours: Floats) -> Floats:
    wave = np.cos(np.float32(1.5) * np.log1p(hours))
    return _curve(wave, [0.25, 0.15, -0.2], missing=[-0.4, -0.3, 0.3])


def _depth_curve(depth: Floats) -> Floats:
    decay = np.exp(depth / np.float32(-5))
    return _curve(decay, [0.5, -0.3, -0.4])


def _curve(
    shape: npt.NDArray[np.floating], slopes: list[float], missing: list[float] | None = None
) -> Floats:
    effect: Floats = shape[:, None] * np.array(slopes, dtype=np.float32)
    if missing is not None:
        effect[np.isnan(shape)] = np.array(missing, dtype=np.float32)
    return effect


def _names(codes: Ints, names: tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names)).dictionary_decode()


def _lists(lengths: Ints, values: pa.Array) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)
