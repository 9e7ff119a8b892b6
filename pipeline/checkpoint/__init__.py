"""Checkpoints: saved beside the loop, made visible by one marker, verified before they load."""
