"""Training: process group, sharding plan, optimizers, the loop and its checkpoint."""
