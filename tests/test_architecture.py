"""The architecture, enforced: which part may import which, and how large files may grow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first; a layer imports itself and those before it.
LAYERS = [
    "pipeline.config",
    "pipeline.data",
    "pipeline.model",
    "pipeline.evaluation",
    "pipeline.checkpoint",
    "pipeline.training",
    "pipeline.cluster",
    "pipeline.registry",
    "pipeline.console",
    "pipeline.run",
    "pipeline.page",
    "pipeline.serving",
    "pipeline.scoring",
    "pipeline.backtest",
    "pipeline.promotion",
    "pipeline.comparison",
    "pipeline.tuning",
    "pipeline.submission",
    "pipeline.benchmark",
    "jobs",
]
SOURCES = sorted(
    path for package in ("ple", "pipeline", "jobs") for path in (ROOT / package).rglob("*.py")
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def layer_of(module: str) -> int | None:
    for number, layer in enumerate(LAYERS):
        if module == layer or module.startswith(layer + "."):
            return number
    return None


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    own = layer_of(module_name(path))
    for module in imported_modules(path):
        if module_name(path).startswith("ple."):
            assert module.split(".")[0] not in ("pipeline", "jobs"), f"{path} imports {module}"
        imported = layer_of(module)
        if own is not None and imported is not None:
            assert imported <= own, f"{path} imports {module}, which lies above it"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[-2] == "ple"], ids=module_name)
def test_ple_needs_torch_and_torchrec_only(path: Path) -> None:
    standard = {"collections", "dataclasses", "functools", "math", "typing", "itertools"}
    allowed = standard | {"ple", "torch", "torchrec", "__future__"}
    assert {module.split(".")[0] for module in imported_modules(path)} <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_stay_readable(path: Path) -> None:
    limit = 100 if path.parent == ROOT / "jobs" else 320
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("name", ["tests", "jobs", "pipeline", "ple"])
def test_the_project_speaks_of_itself_alone(name: str) -> None:
    for path in (ROOT / name).rglob("*.py"):
        if path != Path(__file__):
            assert str(ROOT) not in path.read_text(), path
