"""The evaluation section: columns in order, dead settings refused."""

import pytest
from pydantic import ValidationError

from pipeline.config.evaluation import EvaluationConfig


def test_key_columns_come_once_and_in_order():
    config = EvaluationConfig(group_by="user", slices=("tab", "user"))
    assert config.key_columns == ("user", "tab")
    assert EvaluationConfig().key_columns == ()
    assert EvaluationConfig(slices=("tab",)).slice_limit == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_slices": 5}, "no effect without `slices`"),
        ({"slices": ("a", "b", "a")}, "slices listed twice: a"),
        ({"calibration_bins": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig(**settings)
