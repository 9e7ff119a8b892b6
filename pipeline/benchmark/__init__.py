"""Measurements behind jobs.benchmark: ratios taken in one run."""
