"""Exit codes of ended jobs."""

import pytest

from pipeline.submission.expectations import Expectations
from pipeline.submission.status import exit_code, status_line


@pytest.mark.parametrize(
    ("status", "driver", "log", "code"),
    [
        ("SUCCEEDED", 0, "", 0),
        ("FAILED", 1, "", 1),
        ("FAILED", 3, "", 3),
        ("FAILED", -9, "", 137),
        ("FAILED", None, "", 1),
        ("STOPPED", None, f"saved\n{status_line(3)}\n", 3),
        ("STOPPED", None, f"{status_line(0)}\nmore\n{status_line(1)}\n", 1),
        ("STOPPED", None, "killed", 130),
        ("STOPPED", None, "a line with [exit status 3] in it", 130),
    ],
)
def test_one_code_from_what_ray_knows(status: str, driver: int | None, log: str, code: int) -> None:
    assert exit_code(status, driver, log) == code


def test_expectations_name_what_does_not_hold() -> None:
    wanted = Expectations({"torch": "2.13.0", "ray": "2.60.0"}, ("AWS_PROFILE", "EMPTY"))
    there = {"torch": "2.12.0", "ray": "2.60.0"}
    packages, variables = wanted.faults(there, {"EMPTY": ""})
    assert "torch is 2.12.0, not 2.13.0;" in packages
    assert "ray" not in packages.partition("machine: ")[2].partition(";")[0]
    assert "do not set AWS_PROFILE, EMPTY;" in variables
    assert Expectations().faults({}, {}) == []
