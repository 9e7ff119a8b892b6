"""Batch scoring: Parquet in, Parquet with scores out, by an actor pool of Ray Data."""
