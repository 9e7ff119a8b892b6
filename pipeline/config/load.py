"""YAML and dotted overrides → :class:`Experiment`, with errors that name the key and the remedy."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import pyarrow as pa
import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.locations import is_uri, mask, read_text
from pipeline.config.schema import Experiment

_Tree = TypeVar("_Tree", bound=BaseModel)


class ConfigError(ValueError):
    """The experiment cannot be used; the message names the key and what to do."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads one YAML file, applies ``section.key=value`` overrides in order, checks everything.

    Args:
        path: the experiment file, local or a URI.
        overrides: dotted assignments; values are YAML (``train.epochs=3``,
            ``model.levels.0.hidden=[64,32]``), list items are addressed by position.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or contradicting settings.
    """
    try:
        tree = yaml.load(read_text(path), Loader=_UniqueKeyLoader)
    except (OSError, pa.ArrowInvalid) as error:
        why = mask(getattr(error, "strerror", None) or str(error))
        raise ConfigError(f"{mask(str(path))}: cannot read the experiment file: {why}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections at the top")
    for override in overrides:
        apply_override(tree, override)
    return parse_experiment(tree, source=str(path))


def parse_experiment(tree: dict[str, Any], source: str = "experiment") -> Experiment:
    """Checks a plain tree (as YAML or JSON gives it) and freezes it. Raises ConfigError."""
    return parse_tree(Experiment, tree, source)


def parse_tree(kind: type[_Tree], tree: dict[str, Any], source: str) -> _Tree:
    """The same for a tree with some of the experiment's sections."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(mask(f"{source}: " + "; ".join(lines))) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice (again in line {line})"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment with local folders made absolute: workers start elsewhere.

    URIs stay as they are.
    """
    data, storage = experiment.data, experiment.storage
    return experiment.model_copy(
        update={
            "data": data.model_copy(update={"path": _absolute(data.path)}),
            "storage": storage.model_copy(update={"path": _absolute(storage.path)}),
        }
    )


def _absolute(path: str) -> str:
    return path if is_uri(path) else str(Path(path).resolve())


def resolved_yaml(experiment: Experiment) -> str:
    """The whole experiment with every default filled in, as YAML that loads back to the same."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, width=100)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets what ``section.key=value`` says in a plain tree. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    assign(tree, key, value, override)


def assign(tree: dict[str, Any], key: str, value: Any, override: str) -> None:
    """Sets one dotted `key` of a plain tree; `override` is how messages call the setting.

    Raises:
        ConfigError: the key leads through a value, or to no item of a list.
    """
    node: Any = tree
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            node = node[_position(node, part, override)]
        elif isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            raise ConfigError(f"override {override!r}: {'.'.join(parents[:depth])} is a value")
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a value")


def _position(items: list[Any], part: str, override: str) -> int:
    if part.isdigit() and int(part) < len(items):
        return int(part)
    for position, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return position
    raise ConfigError(
        f"override {override!r}: {part!r} is neither a position below {len(items)} nor a name in "
        "that list"
    )


def _explain(item: Any) -> str:
    place = [p for p in item["loc"] if not _is_variant(p)]
    where = ".".join(str(p) for p in place) or "experiment"
    if item["type"] != "extra_forbidden":
        given = item.get("input")
        shown = f" (given {given!r})" if isinstance(given, str | int | float | bool) else ""
        return f"{where}: {item['msg'].removeprefix('Value error, ')}{shown}"
    valid = _keys_at(place[:-1])
    close = difflib.get_close_matches(str(place[-1]), valid, n=1, cutoff=0.0)
    nearest = f"; nearest valid key: {close[0]}" if close else ""
    return f"unknown key {where}{nearest} (valid: {', '.join(valid)})"


def _is_variant(part: Any) -> bool:
    # pydantic adds the name of the union member it tried ("int", "dict[str,...]") to the path.
    return isinstance(part, str) and (
        part in {"int", "float", "str", "constrained-int"} or part.startswith(("dict[", "literal["))
    )


def _keys_at(place: Sequence[Any]) -> list[str]:
    section: type[BaseModel] = Experiment
    for part in place:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(str(part))
        if field is None:
            continue  # a key the user chose, of a dict of sections
        inner = _section_in(field.annotation)
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _section_in(argument)
        if found:
            return found
    return None
