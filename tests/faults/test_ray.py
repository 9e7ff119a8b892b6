"""The training job on a real Ray cluster: a worker killed, then the driver, as if nothing had
happened; held against a run without Ray that nobody touched."""

from collections.abc import Iterator

import pytest

from pipeline.benchmark.faults_audit import RowCount
from pipeline.benchmark.faults_plan import Fault
from pipeline.benchmark.faults_ray import RayTrials

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayTrials]:
    made = RayTrials(tmp_path_factory.mktemp("faults"), ["worker", "driver"])
    yield made
    made.close()


def test_a_worker_and_the_driver_are_killed(runs: RayTrials) -> None:
    untouched = runs.untouched()
    faults = [
        Fault("worker", "training", 4, 0.2, 1, None, 0),
        Fault("driver", "training", 20, 0.0, 0, None, 0),
    ]
    left = runs.run("killed", faults)
    assert len(left.moments) == len(faults), left.notes
    assert left.unlike(untouched) == [], left.notes
    assert left.rows == RowCount(lost=0, doubled=0)
    assert left.result["MLflow"] == "FINISHED"
    assert left.result["series in MLflow"] == "as recorded"
    assert any(note.startswith("restart 1 of 3") for note in left.notes), left.notes
    # Once within Ray, once in a new driver.
    assert sum(note.startswith("going on after step") for note in left.notes) == 2
