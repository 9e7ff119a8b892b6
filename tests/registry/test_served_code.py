"""A served model takes along what it imports, and imports what its requirements hold."""

import ast
import re
import sys
from pathlib import Path

from pipeline.registry.served_code import pinned_requirements, served_files

ROOT = Path(__file__).parents[2]
# What the packages are called when they are imported, and what they bring along themselves.
IMPORTED_AS = {"pyyaml": "yaml"}
INSTALLED_BY = {"pydantic": {"pydantic_core"}}


def test_served_code_needs_its_requirements_only() -> None:
    packages = [pin.partition("==")[0] for pin in pinned_requirements()]
    allowed = {"ple", "pipeline", *sys.stdlib_module_names}
    for package in packages:
        allowed |= {IMPORTED_AS.get(package, package), *INSTALLED_BY.get(package, ())}
    for file in served_files():
        for node in ast.parse(file.read_text()).body:
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            assert {module.split(".")[0] for module in modules} <= allowed, file


def test_what_only_training_needs_stays_behind() -> None:
    served = {str(path.relative_to(ROOT)) for path in served_files()}
    assert {"ple/serving_tables.py", "pipeline/registry/scorer.py", "ple/__init__.py"} <= served
    # Named in ple/__init__.py and in ple/ranker.py for type checkers and for training.
    assert not served & {"ple/embeddings.py", "ple/managed_ids.py", "pipeline/data/batch.py"}
    assert not [path for path in served if re.search("training|cluster|checkpoint/|tracking", path)]


def test_versions_are_pinned_without_local_labels() -> None:
    pins = pinned_requirements()
    assert all(re.fullmatch(r"[a-z0-9_-]+==[0-9][0-9a-z.]*", pin) for pin in pins), pins
    assert not {"torchrec", "ray", "fbgemm-gpu-cpu"} & {pin.partition("==")[0] for pin in pins}
