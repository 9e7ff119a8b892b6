"""The fast path: tables in, scores out, from any thread, with every fault named."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from pipeline.registry.columns import RowError
from pipeline.registry.scorer import RowScorer, bundle_folder

HOUR = {"name": "age", "encoder": "identity", "rows": 90}
LISTED = {"name": "tags", "encoder": "identity", "rows": 12, "pooling": "mean"}


@pytest.fixture(scope="module")
def identities(trained_with) -> RowScorer:
    """A model whose `age` and `tags` index their tables themselves."""
    categorical = [{"name": "user"}, HOUR, LISTED]
    return trained_with({"embedding_dim": 4, "categorical": categorical}).scorer("fp32")


def test_types_that_convert_score_alike(trained):
    rows = trained.raw_rows(40, 5)
    narrow = rows.set_column(rows.column_names.index("item"), "item", rows["item"].cast(pa.int32()))
    for name in ("user", "shelf"):
        coded = narrow[name].dictionary_encode()
        narrow = narrow.set_column(narrow.column_names.index(name), name, coded)
    expected = trained.scorer.score_table(rows)
    np.testing.assert_array_equal(trained.scorer.score_table(narrow), expected)
    shuffled = pa.concat_tables([rows.slice(0, 7), rows.slice(7)]).select(rows.column_names[::-1])
    np.testing.assert_allclose(trained.scorer.score_table(shuffled), expected, atol=1e-7)


def test_a_column_of_another_type_is_named(trained):
    with pytest.raises(RowError, match="column 'item' ") as error:
        trained.scorer.score_table(pa.table({"item": ["seven"]}))
    assert (error.value.field, error.value.row) == ("item", None)
    with pytest.raises(RowError, match=r"column 'tags'.*lists") as error:
        trained.scorer.score_table(pa.table({"tags": [3]}))
    assert error.value.field == "tags"


def test_a_row_that_cannot_be_used_is_named_by_number(trained, monkeypatch):
    rows = trained.raw_rows(20, 5)
    weights = rows["relevance"].to_pylist()
    weights[11] = [*(weights[11] or []), 1.0]
    column = pa.array(weights, pa.list_(pa.float64()))
    rows = rows.set_column(rows.column_names.index("relevance"), "relevance", column)
    monkeypatch.setattr("pipeline.registry.scorer._CHUNK_ROWS", 8)
    with pytest.raises(RowError, match=r"row 11, column 'relevance': .*one weight per id") as error:
        trained.scorer.score_table(rows)
    assert (error.value.field, error.value.row) == ("relevance", 11)
    assert error.value.rows.tolist() == [11]


def test_ids_outside_an_identity_table_count_as_missing(identities):
    rows = {"user": ["u1"] * 4, "tags": [[3, 11]] * 4}
    scores = identities.score_table(pa.table(rows | {"age": [None, -1, 90, 10**12]}))
    assert len(set(scores[:, 0])) == 1
    known = identities.score_table(pa.table(rows | {"age": [0, 89, 30, 5]}))
    assert len({*known[:, 0], scores[0, 0]}) == 5
    lists = pa.table({"user": ["u1"] * 3, "tags": [[3, 11], [3, 99, 11, -4], [99]]})
    first, second, third = identities.score_table(lists)[:, 0]
    assert first == pytest.approx(second, abs=1e-7) != third
    (nothing,) = identities.score_table(pa.table({"user": ["u1"], "tags": [[]]}))[:, 0]
    assert third == pytest.approx(nothing, abs=1e-7)


def test_identity_ids_of_a_slice_and_with_nulls(identities):
    ages = pa.array([500, 7, None, 500, 8, -3])
    tags = pa.array([[500], None, [1], [2, 500], [], [3]])
    whole = identities.score_table(pa.table({"age": ages, "tags": tags}))
    sliced = identities.score_table(pa.table({"age": ages, "tags": tags}).slice(2, 3))
    np.testing.assert_allclose(sliced, whole[2:5], atol=1e-7)
    clean = {"age": [None, 7, None, None, 8, None], "tags": [[], None, [1], [2], [], [3]]}
    types = pa.schema({"age": pa.int64(), "tags": pa.list_(pa.int64())})
    np.testing.assert_allclose(
        whole, identities.score_table(pa.table(clean, schema=types)), atol=1e-7
    )


def test_unknown_ids_are_counted_by_column(trained, monkeypatch):
    lists = {"tags": [[3, 999, 998, 997], [999], None, [4]]}  # three are kept of a list
    lists |= {"words": [["w1", "zz"], ["zz"], [], ["w2"]]}
    lists |= {"relevance": [[1.0, 1.0], [np.nan], [], [1.0]]}  # without a weight there is no id
    singles = {"user": ["u1", "nobody", None, "someone"], "item": [10**12] * 4}
    visitors = [7, 10**9, None, 8]
    schema = trained.scorer.schema
    rows = pa.table(
        singles | lists | {"visitor": visitors},
        schema=pa.schema([schema.field(name) for name in (*singles, *lists, "visitor")]),
    )
    state = trained.scorer._ranker.state_dict()
    (held,) = [
        set(v.tolist())
        for k, v in state.items()
        if k.startswith("embeddings.maps") and k.endswith("ids")
    ]
    place = trained.transforms.single_features.index("visitor")
    keys = trained.transforms.encode(trained.scorer._completed(rows)).ids_FB[place].tolist()
    mapped = sum(key not in held for key in (keys[0], keys[1], keys[3]))
    assert mapped >= 1
    expected = Counter(user=2, tags=3, words=1, visitor=mapped)
    for chunk in (8192, 3):
        monkeypatch.setattr("pipeline.registry.scorer._CHUNK_ROWS", chunk)
        unknown = Counter()
        trained.scorer.score_table(rows, unknown)
        assert unknown == expected
    assert set(unknown) == {"user", "tags", "words", "visitor"} == set(trained.scorer.id_columns)


def test_ids_outside_an_identity_table_are_counted_as_unknown(identities):
    ages = pa.array([500, None, -1, 90, 5])
    tags = pa.array([[500], [3, 11], [3, 99, 11, -4], [99], None])
    unknown = Counter()
    identities.score_table(pa.table({"user": ["u1"] * 5, "age": ages, "tags": tags}), unknown)
    assert unknown == Counter(age=3, tags=4)
    unknown.clear()
    sliced = pa.table({"user": ["u1", "x", "x", "y", "u2"], "age": ages, "tags": tags}).slice(1, 3)
    identities.score_table(sliced, unknown)
    assert unknown == Counter(age=2, tags=3, user=3)


def test_threads_do_not_disturb_each_other(trained):
    tables = [trained.raw_rows(50, seed) for seed in range(8)]
    alone = [trained.scorer.score_table(table) for table in tables]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = pool.map(trained.scorer.score_table, tables)
            for got, expected in zip(together, alone, strict=True):
                np.testing.assert_array_equal(got, expected)


def test_a_bundle_is_found_in_a_models_folder(tmp_path):
    assert bundle_folder(tmp_path) == tmp_path
    (tmp_path / "artifacts" / "bundle").mkdir(parents=True)
    assert bundle_folder(tmp_path) == tmp_path / "artifacts" / "bundle"


@pytest.mark.parametrize(("precision", "within"), [("fp16", 2e-3), ("int8", 5e-3)])
def test_smaller_tables_score_nearly_alike(trained, precision, within, monkeypatch):
    monkeypatch.setattr("ple.serving_tables._LARGE_ROWS", 2)
    rows = trained.raw_rows(100, 6)
    expected, got = (trained.trained().scorer(p).score_table(rows) for p in ("fp32", precision))
    assert 0 < np.abs(got - expected).max() < within
