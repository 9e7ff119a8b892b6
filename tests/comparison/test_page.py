"""The page: whole in one file, everything escaped, the figures drawn."""

import re

from pipeline.comparison.figures import gain_figure, seesaw_figure
from pipeline.comparison.findings import Finding
from pipeline.comparison.page import HEADING, remarks
from pipeline.comparison.statistics import TaskMetric, outcomes
from pipeline.page import ReportPage

METRICS = [TaskMetric(name, "auc", True) for name in ("click", "like", "share")]
OBSERVED = {
    kind: {
        metric.task: {seed: 0.7 + gain * (1 + 0.1 * seed * (place + 1)) for seed in range(3)}
        for place, metric in enumerate(METRICS)
    }
    for kind, gain in (("single_task", 0.0), ("mmoe", 0.004), ("ple", 0.01))
}


def test_the_page_needs_no_other_file() -> None:
    figure = gain_figure(outcomes(OBSERVED, METRICS))
    assert figure is not None
    page = ReportPage(
        title="a < b & c",
        about=["digest 1234"],
        remarks=remarks(
            [
                Finding("claim", "PLE beats <it>."),
                Finding("no claim", "level"),
                Finding("caution", "few seeds"),
            ]
        ),
        remarks_heading=HEADING,
        tables={"Tasks": (["task", "mean"], [["click", "<0.7>"]])},
        figures={"MTL gain": (figure, "bars & intervals")},
        texts={"Command": "python -m jobs.compare --kinds 'a<b'"},
    ).html()
    assert "<h1>a &lt; b &amp; c</h1>" in page
    assert '<li class="good"><b>Supported.</b>PLE beats &lt;it&gt;.</li>' in page
    assert '<li class="plain"><b>Not supported.</b>level</li>' in page
    assert "<td>click</td><td>&lt;0.7&gt;</td>" in page
    assert "jobs.compare --kinds &#x27;a&lt;b&#x27;" in page
    assert re.findall(r'(?:src|href)="([^"]{0,22})', page) == ["data:image/png;base64,"]
    assert "http" not in page
    assert "<script" not in page


def test_every_pair_of_tasks_has_a_seesaw_with_error_bars() -> None:
    result = outcomes(OBSERVED, METRICS)
    figure = seesaw_figure(result, METRICS)
    assert figure is not None
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert labels == [
        ("gain in click (AUC)", "gain in like (AUC)"),
        ("gain in click (AUC)", "gain in share (AUC)"),
        ("gain in like (AUC)", "gain in share (AUC)"),
    ]
    ple = result["ple"].tasks
    across, up = ple["click"].gain, ple["like"].gain
    assert across is not None
    assert up is not None
    container = next(c for c in figure.axes[0].containers if c.get_label() == "PLE")
    point, _, (horizontal, vertical) = container.lines
    assert point.get_xydata().tolist() == [[across.mean, up.mean]]
    (((low, _), (high, _)),) = horizontal.get_segments()
    assert [low, high] == [across.low, across.high]
    (((_, low), (_, high)),) = vertical.get_segments()
    assert [low, high] == [up.low, up.high]


def test_no_figure_where_nothing_can_be_compared() -> None:
    result = outcomes(OBSERVED, METRICS)
    assert seesaw_figure(result, METRICS[:1]) is None
    without_single = {kind: result[kind] for kind in ("mmoe", "ple")}
    assert seesaw_figure(without_single, METRICS) is None
    assert gain_figure({"single_task": result["single_task"]}) is None
