"""Sections of the model card that do not depend on the metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Experiment
from pipeline.registry.quantise import QuantisationCost

HOW_TO_LOAD = """```
pip install -r requirements.txt      # of the model's folder; CPU wheels are enough
```
```python
import mlflow
model = mlflow.pyfunc.load_model("models:/NAME/VERSION")   # or the folder
scores = model.predict(rows)         # pandas rows with the columns above -> one column per task
```
`mlflow models serve -m models:/NAME/VERSION --env-manager local` answers the same over HTTP."""


def gate_section(diagnostics: Mapping[str, Any]) -> list[str]:
    """What gates give to which expert on average, and what does not do its work."""
    if not diagnostics.get("gates"):
        return []
    rows = [
        [
            str(gate["level"]),
            gate["stream"],
            ", ".join(
                f"{expert} {mean:.2f}"
                for expert, mean in zip(gate["experts"], gate["mean"], strict=True)
            ),
        ]
        for gate in diagnostics["gates"]
    ]
    remarks = [f"- {flag}" for flag in diagnostics["flags"]] or ["Every gate and expert is in use."]
    return [
        "## Gates",
        "Mean weights on the validation split.",
        markdown_table(["level", "stream", "experts"], rows),
        "\n".join(remarks),
    ]


def limits(experiment: Experiment, cost: QuantisationCost | None) -> str:
    """What a user must not expect."""
    points = [
        "Scores of a task with a sample space mean something within it only; outside they are "
        "what the model says, not what was measured.",
        "An id not seen in training takes the row trained for such ids (hashed ids share rows; "
        "identity ids outside their table count as missing), a missing value what was trained for "
        "missing ones.",
        "Metrics are of the days and rows above; drift is not foreseen.",
    ]
    sampled = [t.name for t in experiment.tasks if t.negatives_kept is not None]
    if sampled:
        points.append(
            f"Negatives of {', '.join(sampled)} were sampled; scores are corrected for it."
        )
    if cost is not None:
        points.append(f"Tables are kept in {cost.precision}; see above for what it costs.")
    return "\n".join(f"- {point}" for point in points)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars within cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    # A bar within a value would begin a new cell.
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
