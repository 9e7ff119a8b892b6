"""The registered model: how its tables are stored and how it is checked before registration."""

from typing import Literal

from pydantic import Field, PositiveInt

from pipeline.config.base import Section


class ArtifactConfig(Section):
    """The model a run registers."""

    table_precision: Literal["fp32", "fp16", "int8"] = Field(
        default="fp32",
        description="Precision of the embedding tables: as trained, half the bytes, or one byte "
        "per number and 8 bytes per row. The AUC it costs on the test split is logged.",
    )
    check_rows: PositiveInt = Field(
        default=4096,
        description="Rows of the test split (without one, of valid) on which the artifact must "
        "score as the trainer did; otherwise nothing is registered.",
    )
