"""Entry points: ``python -m jobs.NAME``; each only composes parts of ``pipeline``."""
