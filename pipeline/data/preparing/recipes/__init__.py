"""Recipes: how raw logs become the rows of a dataset."""
