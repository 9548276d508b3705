"""Config, parallelism, optimisation, checkpoints, metrics and the loop, on top of datasets and models."""
