"""Metrics, model selection and figures: what a run is judged by."""
