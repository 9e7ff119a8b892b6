"""The file MLflow executes to obtain the model ("models from code"); nothing else imports it."""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipeline.registry.scorer import BUNDLE_ARTIFACT, RowScorer


class RankerModel(PythonModel):
    """MLflow's view of a RowScorer."""

    def load_context(self, context: PythonModelContext) -> None:
        self._scorer = RowScorer.load(context.artifacts[BUNDLE_ARTIFACT])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Scores raw rows; unknown ids and missing values take the rows trained for them."""
        return self._scorer.score_frame(model_input)


set_model(RankerModel())
