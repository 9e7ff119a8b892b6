"""PLE as others write it, trained on the same rows: what the benchmark compares with."""
