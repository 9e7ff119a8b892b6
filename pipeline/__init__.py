"""The training pipeline around ``ple``: config, data, training, evaluation, registry."""
