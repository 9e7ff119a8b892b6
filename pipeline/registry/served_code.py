"""The code and packages a model takes along: what scoring imports, no more."""

import ast
import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

ENTRY = "pipeline.registry.pyfunc_entry"

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("ple", "pipeline")
_REQUIREMENTS = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "mlflow",
)


def pinned_requirements() -> list[str]:
    """What scoring needs, at the installed versions (without local labels such as ``+cpu``)."""
    pins = []
    for package in _REQUIREMENTS:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # Of the two fbgemm builds one is installed.
        pins.append(f"{package}=={version.partition('+')[0]}")
    return pins


def copy_served_code(folder: Path) -> list[str]:
    """Copies the project's modules that scoring imports; returns the copied packages' paths."""
    for source in sorted(served_files()):
        target = folder / source.relative_to(_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return [str(folder / package) for package in _PACKAGES]


def served_files() -> set[Path]:
    """Files of this project reached by imports from the entry file, packages included."""
    found: set[Path] = set()
    waiting = [ENTRY]
    while waiting:
        for file in _files_of(waiting.pop()):
            if file not in found:
                found.add(file)
                waiting += _imports(file)
    return found


def _files_of(module: str) -> Iterator[Path]:
    """The module's file and the ``__init__`` of every package above it."""
    parts = module.split(".")
    if parts[0] not in _PACKAGES:
        return
    for depth in range(1, len(parts) + 1):
        path = _ROOT.joinpath(*parts[:depth])
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                yield file


def _imports(file: Path) -> Iterator[str]:
    """Names that may be modules; those which are not have no file and drop out."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
