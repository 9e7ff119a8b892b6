"""The file MLflow executes to obtain the model ("models from code"); nothing else imports it."""

from mlflow.models import set_model

from pipeline.registry.scorer import RankerModel

set_model(RankerModel())
