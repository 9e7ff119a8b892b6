"""What a submission expects of the cluster, checked there before the job starts.

Imports the standard library only: it runs before anything of the job's is loaded.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

EXPECTATIONS_FILE = "submission.json"
# Whose version decides whether the same code does the same thing.
_PINNED = ("torch", "torchrec", "ray", "mlflow", "pyarrow", "numpy", "pandas", "pydantic")


@dataclass(frozen=True)
class Expectations:
    """What must hold on the cluster before the job starts there.

    Attributes:
        versions: package → version, without the part that names a build (``+cpu``).
        needs: environment variables that must be set there.
    """

    versions: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def faults(self, versions: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
        """What does not hold, in words."""
        other = [
            f"{name} is {versions.get(name, 'absent')}, not {version}"
            for name, version in self.versions.items()
            if versions.get(name) != version
        ]
        found = []
        if other:
            found.append(
                f"the packages of the cluster's {sys.executable} are not those of the submitting "
                f"machine: {', '.join(other)}; run an image made from the same lock, or submit "
                "with --install cpu or --install cuda"
            )
        missing = [name for name in self.needs if not environment.get(name)]
        if missing:
            found.append(
                f"the cluster's nodes do not set {', '.join(missing)}; give them to the nodes from "
                "a secret (docker/README.md shows how)"
            )
        return found


def installed_versions() -> dict[str, str]:
    """Versions of the packages that matter, as installed here."""
    found = {}
    for name in _PINNED:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def read_expectations(folder: Path) -> Expectations:
    """What ``write_package`` wrote."""
    tree = json.loads((folder / EXPECTATIONS_FILE).read_text())
    return Expectations(tree["versions"], tuple(tree["needs"]))
