"""What every section of the experiment shares: unknown keys are errors, values never change."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A strict, frozen node of the experiment tree."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, tree: Any) -> Any:
        # Python counts true as 1; a person who writes `epochs: true` means something else.
        for key, value in tree.items() if isinstance(tree, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and not _takes(field.annotation, bool):
                raise ValueError(f"`{key}` takes no true or false")
        return tree


def _takes(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_takes(inner, kind) for inner in get_args(annotation))
