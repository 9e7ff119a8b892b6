"""Search for settings: trials over any config key, judged on validation, tracked in MLflow."""
