"""Versions judged on days of data: metrics by day, and how far features moved from training."""
