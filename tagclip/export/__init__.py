"""Export of a model with its vocabulary baked in."""
