"""Comparison of model kinds on one dataset: equal runs, paired statistics, claims in words."""
