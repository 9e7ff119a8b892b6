"""The code and packages a model takes along: what scoring imports, no more."""

import ast
import importlib.metadata
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

ENTRY = "pipeline.registry.pyfunc_entry"

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("ple", "pipeline")
_REQUIREMENTS = (
    "torch",
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
    versions = {package: importlib.metadata.version(package) for package in _REQUIREMENTS}
    return [f"{package}=={version.partition('+')[0]}" for package, version in versions.items()]


def copy_served_code(folder: Path) -> list[str]:
    """Copies the project's modules that scoring imports; returns the copied packages' paths."""
    for source in sorted(served_files()):
        target = folder / source.relative_to(_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return [str(folder / package) for package in _PACKAGES]


def served_files() -> set[Path]:
    """Files of this project that importing the entry file imports, packages included."""
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
    for node in _executed(ast.parse(file.read_text()).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _executed(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not those of functions or type checking."""
    for statement in statements:
        yield statement
        if isinstance(statement, ast.If) and ast.unparse(statement.test) != "TYPE_CHECKING":
            yield from _executed([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            yield from _executed(statement.body)
