"""Raw logs → dataset: recipes give rows, the writer makes shards, statistics and the manifest."""
