"""The training job on a real Ray cluster, a worker of which is killed: as if nothing had happened.

It is held against a run without Ray that nobody touched.
"""

from collections.abc import Iterator

import pytest

from pipeline.benchmark.faults_audit import RowCount
from pipeline.benchmark.faults_plan import Fault
from pipeline.benchmark.faults_ray import RayTrials

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayTrials]:
    made = RayTrials(tmp_path_factory.mktemp("faults"), ["worker"])
    yield made
    made.close()


def test_a_worker_is_killed(runs: RayTrials) -> None:
    untouched = runs.untouched()
    left = runs.run("killed", [Fault("worker", "training", 6, 0.2, 1, None, 0)])
    assert left.moments, left.notes
    assert left.unlike(untouched) == [], left.notes
    assert left.rows == RowCount(lost=0, doubled=0)
    assert left.result["MLflow"] == "FINISHED"
    assert left.result["series in MLflow"] == "as recorded"
    assert "restart 1 of 3" in left.notes, left.notes
    assert sum(note.startswith("going on after step") for note in left.notes) == 1
