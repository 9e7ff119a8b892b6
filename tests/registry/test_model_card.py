"""The card says what a stranger must know before using a version."""

import pytest

from pipeline.evaluation.diagnostics import Diagnostics, GateReport
from pipeline.registry.model_card import Evidence, model_card, short_description
from pipeline.registry.parity import Parity
from pipeline.registry.quantise import QuantisationCost


@pytest.fixture
def evidence(shop_metrics) -> Evidence:
    cost = QuantisationCost(
        "int8", "test", 5000, 0.28, {"click": ("auc", 0.75, 0.7499), "spent": ("rmse", 2.0, 2.01)}
    )
    parity = Parity("test", 400, 1e-3, {"click": 2e-4, "spent": 3e-5}, {"click": (0.7, 0.7)})
    return Evidence({"test": shop_metrics}, {}, cost, parity)


def test_the_card_names_data_tasks_and_figures(shop, shop_manifest, evidence):
    card = model_card(shop(), shop_manifest, evidence, "run7")
    for text in (
        "MLflow run `run7`",
        shop_manifest.digest,
        "1,000 train, 200 valid",
        "The dataset names no days.",
        "Rows are weighted by `importance`.",
        "| buy | bought | rows where click = 1 | probability of bought = 1 |",
        "| click | 0.75000 |",
        "no positives in 50 rows",
        # 50 positives, 150 negatives: the standard error is 0.043202, worked out by itself.
        "click 0.66532 to 0.83468",
        "400 rows of the test split to within 0.0002 of the trainer (tolerance 0.001)",
        "int8, 28% of the bytes of fp32; on 5,000 rows",
        "| click | auc | 0.75000 | 0.74990 |",
        "| tags | list<item: int64> | ids, vocabulary |",
        "Tables are kept in int8",
        "mlflow.pyfunc.load_model",
    ):
        assert text in card, text
    assert "## Gates" not in card
    assert "buy 0." not in card  # an AUC that does not exist has no interval


def test_days_sampling_and_gates_are_told_where_there_are_any(shop, shop_manifest, shop_metrics):
    gate = GateReport(
        level=1,
        stream="click",
        experts=("click 1", "shared 1"),
        mean=(0.25, 0.75),
        deviation=(0.1, 0.1),
        entropy=0.8,
        dominated=(0.0, 0.0),
        rows=200,
    )
    tree = Diagnostics((gate,), ()).to_tree() | {"flags": ["expert click 1 idles"]}
    tasks = [{"name": "click", "negatives_kept": 0.1}, {"name": "buy", "label": "bought"}]
    days = {"files": "dt={date}/*.parquet", "first_date": "2026-11-01", "last_date": "2026-11-14"}
    one_day = days | {"first_date": "2026-11-15", "last_date": "2026-11-15"}
    data = {"path": "data/shop", "splits": {"train": days, "valid": one_day}}
    card = model_card(
        shop(tasks=tasks, data=data), shop_manifest, Evidence({"valid": shop_metrics}, tree), "r"
    )
    for text in (
        "Days: train 2026-11-01 to 2026-11-14, valid 2026-11-15 to 2026-11-15.",
        "Negatives of click were sampled; scores are corrected for it.",
        "| 1 | click | click 1 0.25, shared 1 0.75 |",
        "- expert click 1 idles",
    ):
        assert text in card, text
    assert "Parity" not in card
    assert "Precision of the tables" not in card


def test_the_description_is_short_and_says_where_the_card_is(shop, shop_manifest, evidence):
    text = short_description(shop(), shop_manifest, evidence, "run7")
    assert text.splitlines() == [
        "`ple` ranker of click, buy, spent.",
        f"Data `shop`, SHA-256 `{shop_manifest.digest}`.",
        "test split: click AUC 0.75000, spent RMSE 2.00000.",
        "Tables in fp32. Run `run7`.",
        "The card is model_card.md beside the model.",
    ]
    assert "split" not in short_description(shop(), shop_manifest, Evidence({}), "run7")
