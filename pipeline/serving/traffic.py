"""Which model answers a request: by the hash of its key, or at random by weight."""

import bisect
import hashlib
import itertools
import random
from collections.abc import Sequence

from pipeline.config.serving import ServedModelConfig


class TrafficSplit:
    """Divides requests in proportion to ``traffic``.

    A key meets the same model at every replica and after a restart; raising one model's share moves
    only the keys at the borders between the shares.
    """

    def __init__(self, models: Sequence[ServedModelConfig]) -> None:
        answering = [model for model in models if model.traffic > 0]
        total = sum(model.traffic for model in answering)
        self._names = [model.name for model in answering]
        self._borders = list(itertools.accumulate(m.traffic / total for m in answering))
        self._random = random.Random()

    def choose(self, key: str | None) -> str:
        """Name of the model for a request with this key; at random without one."""
        share = self._random.random() if key is None else share_of(key)
        place = bisect.bisect_right(self._borders, share)
        return self._names[min(place, len(self._names) - 1)]


def share_of(key: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
