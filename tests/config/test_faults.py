"""The policies for faults of data: defaults, and settings that would do nothing."""

import pytest
from pydantic import ValidationError

from pipeline.config.faults import KINDS, FaultsConfig


def test_by_default_every_fault_is_an_error() -> None:
    faults = FaultsConfig()
    assert {faults.of(kind) for kind in KINDS} == {"error"}
    assert not faults.skips
    assert not faults.skips_row_groups
    assert faults.ceiling == 0.001


def test_what_may_be_skipped() -> None:
    assert not FaultsConfig(labels="skip_row").skips_row_groups
    assert FaultsConfig(unreadable="skip_row_group").skips_row_groups
    assert FaultsConfig(ids="skip_row", max_lost_fraction=0.02).ceiling == 0.02


@pytest.mark.parametrize(
    "tree",
    [
        {"unreadable": "skip_row"},  # of a file that cannot be read no single row is known
        {"schema_drift": "skip_row"},
        {"max_lost_fraction": 0.1},
        {"labels": "skip_row", "max_lost_fraction": 0.0},
        {"read_attempts": 0},
        {"retries": 3},
    ],
)
def test_settings_without_effect_or_sense_are_refused(tree: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FaultsConfig.model_validate(tree)
