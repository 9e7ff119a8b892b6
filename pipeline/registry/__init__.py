"""MLflow runs, the model artifact and its versions."""
