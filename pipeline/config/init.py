"""What a run that starts from the weights of another model takes for what."""

from pydantic import Field

from pipeline.config.base import Section


class InitConfig(Section):
    """Names that differ between this model and the one that ``--init-from`` gives; what is not
    named here is taken from what has the same name there."""

    tasks: dict[str, str | None] = Field(
        default_factory=dict,
        description="Task of this model: task of the source whose tower, experts, gates and tables "
        "it starts from; null = it starts fresh.",
    )
    features: dict[str, str | None] = Field(
        default_factory=dict,
        description="Feature of this model (column or cross): feature of the source; null = it "
        "starts fresh.",
    )
