"""Scores rows with a model's folder and nothing else of this project; run as a program.

python -P fresh_scores.py MODEL_FOLDER ROWS.parquet SCORES.npy
"""

import sys
from pathlib import Path

# What a served model must do without. None makes an import of it fail.
ABSENT = ("torchrec", "fbgemm_gpu", "ray")


def main(model_folder: str, rows_file: str, scores_file: str) -> None:
    """Writes float64 scores, one column per task.

    Raises:
        RuntimeError: the code that ran is not the one in the model's folder.
    """
    sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]
    import mlflow.pyfunc
    import numpy as np
    import pyarrow.parquet as pq

    model = mlflow.pyfunc.load_model(model_folder)
    # Whole numbers with gaps stay whole: as floats, ids above 2^53 would change.
    rows = pq.read_table(rows_file).to_pandas(integer_object_nulls=True)
    np.save(scores_file, model.predict(rows).to_numpy())
    ran = Path(str(sys.modules["pipeline"].__file__)).resolve()
    if not ran.is_relative_to(Path(model_folder).resolve()):
        raise RuntimeError(f"the code in {ran.parent} scored, not the model's own")


if __name__ == "__main__":
    main(*sys.argv[1:])
