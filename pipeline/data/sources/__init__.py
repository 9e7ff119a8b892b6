"""Datasets as an experiment names them: prepared ones, and Parquet files somebody else wrote."""
