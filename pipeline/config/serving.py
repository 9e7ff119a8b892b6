"""The online service: which versions answer, how requests are batched, and what is refused."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Section

MODEL_URI = r"^models:/[^/@]+(/\d+|@[\w\-]+)$"
_NAME = r"^[A-Za-z0-9_\-]{1,64}$"


class ServedModelConfig(Section):
    """One version, or an alias that moves from version to version."""

    name: str = Field(pattern=_NAME, description="Names it in answers, metrics and `?version=`.")
    uri: str = Field(
        pattern=MODEL_URI,
        description="models:/NAME@ALIAS (followed when the alias moves) or models:/NAME/VERSION.",
    )
    traffic: NonNegativeFloat = Field(
        default=0.0, description="Share of the requests it answers, relative to the others'."
    )
    shadow: NonNegativeFloat = Field(
        default=0.0,
        le=1.0,
        description="Share of the requests answered by others that it scores too, for the metrics.",
    )

    @model_validator(mode="after")
    def _one_role(self) -> Self:
        if self.traffic and self.shadow:
            raise ValueError(f"{self.name}: give `traffic` or `shadow`, not both")
        return self


class BatchingConfig(Section):
    """Requests that wait at the same time share one call of the model."""

    max_rows: PositiveInt = Field(default=2048, description="Rows of one call of the model.")
    max_wait_ms: NonNegativeFloat = Field(
        default=0.0,
        description="How long an idle model waits for more rows; 0 = those that came in while it "
        "was busy, which adds no latency.",
    )
    queue_rows: PositiveInt = Field(
        default=65_536,
        description="Rows that may wait for a model; further requests get 503 and Retry-After.",
    )


class RequestLimitsConfig(Section):
    """What a request may hold; beyond it the answer is a 4xx that says so."""

    body_bytes: PositiveInt = Field(default=8 * 2**20, description="Bytes of a request's body.")
    rows: PositiveInt = Field(default=4096, description="Rows of a request.")
    list_items: PositiveInt = Field(default=1000, description="Items of one list value.")
    text_bytes: PositiveInt = Field(default=1024, description="UTF-8 bytes of one text value.")
    body_seconds: PositiveFloat = Field(
        default=10.0, description="Seconds within which a body must have come in."
    )


class ServingConfig(Section):
    """`jobs.serve`."""

    models: list[ServedModelConfig] = Field(
        default_factory=list,
        description="Versions side by side; empty = the champion of mlflow.model_name, alone.",
    )
    request_key: Annotated[str, Field(min_length=1)] | None = Field(
        default="x-request-key",
        description="Header by which traffic is split: equal keys meet the same model. Requests "
        "without it, and all where this is null, are split at random.",
    )
    choose_version: bool = Field(
        default=False, description="Allow `?version=NAME` to choose one of `models` (for tests)."
    )
    extra_fields: Literal["refuse", "ignore"] = Field(
        default="refuse", description="Fields that the model does not read: 422, or passed over."
    )
    poll_seconds: PositiveFloat = Field(
        default=10.0, description="Seconds between looks at the aliases."
    )
    ingress: Literal["auto", "direct", "proxy"] = Field(
        default="auto",
        description="direct = each replica has an HTTP server of its own, all at one port; proxy = "
        "Ray Serve's proxies pass requests on; auto = proxy in a cluster that was joined.",
    )
    host: str = Field(default="127.0.0.1", description="Address the HTTP server binds to.")
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(default=8000, description="Its port.")
    replicas: PositiveInt = Field(default=1, description="Processes that each hold every model.")
    cpus_per_replica: PositiveInt = Field(default=1, description="CPUs reserved for each.")
    threads: PositiveInt | None = Field(
        default=None, description="Intra-op threads of each; absent = cpus_per_replica."
    )
    shutdown_seconds: PositiveFloat = Field(
        default=30.0, description="How long requests in flight may take to finish at shutdown."
    )
    batching: BatchingConfig = Field(default_factory=BatchingConfig)
    limits: RequestLimitsConfig = Field(default_factory=RequestLimitsConfig)

    @model_validator(mode="after")
    def _models_fit_together(self) -> Self:
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: the name {twice[0]} stands twice")
        if self.models and not any(model.traffic for model in self.models):
            raise ValueError("models: give `traffic` to at least one, or nothing answers")
        if not self.choose_version:
            idle = [m.name for m in self.models if not m.traffic and not m.shadow]
            if idle:
                raise ValueError(
                    f"models: {idle[0]} has neither `traffic` nor `shadow`, so it has no effect; "
                    "set one, or choose_version=true"
                )
        return self
