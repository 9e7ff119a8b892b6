from collections import Counter

import pytest

from pipeline.config.serving import ServedModelConfig
from pipeline.serving.traffic import TrafficSplit, share_of


def split(**traffic):
    models = [
        ServedModelConfig(name=name, uri=f"models:/m/{n + 1}", traffic=value)
        for n, (name, value) in enumerate(traffic.items())
    ]
    return TrafficSplit(models)


@pytest.mark.parametrize("keys", [[str(n) for n in range(20_000)], [None] * 20_000])
def test_shares_are_as_configured(keys):
    chosen = Counter(map(split(a=6, b=3, idle=0, c=1).choose, keys))
    assert set(chosen) == {"a", "b", "c"}
    # Four standard deviations of a share of 20,000 draws are at most 0.014.
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert chosen[name] / 20_000 == pytest.approx(share, abs=0.014)


def test_a_key_keeps_its_model_and_few_keys_move_when_shares_change():
    keys = [str(n) for n in range(5_000)]
    before, same, after = split(a=9, b=1), split(a=90, b=10), split(a=8, b=2)
    assert [before.choose(key) for key in keys] == [same.choose(key) for key in keys]
    moved = [(before.choose(k), after.choose(k)) for k in keys]
    assert ("b", "a") not in moved
    assert moved.count(("a", "b")) / 5_000 == pytest.approx(0.1, abs=0.02)


def test_the_hash_is_the_same_everywhere():
    # Fixed values: a change would move every user to another model at a release.
    assert share_of("user-1") == pytest.approx(0.6041924073669338, abs=1e-15)
    assert share_of("user-1", "shadow") == pytest.approx(0.4736404052036644, abs=1e-15)
