"""What a comparison found, as remarks at the top of its page."""

from collections.abc import Sequence
from typing import Literal

from pipeline.comparison.findings import Finding
from pipeline.page import Remark

HEADING = "What the evidence supports"
_WORDS: dict[str, tuple[Literal["good", "mind", "plain"], str]] = {
    "claim": ("good", "Supported."),
    "no claim": ("plain", "Not supported."),
    "caution": ("mind", "Mind."),
}


def remarks(findings: Sequence[Finding]) -> list[Remark]:
    """A remark for each finding, in order."""
    return [Remark(*_WORDS[finding.nature], finding.text) for finding in findings]
