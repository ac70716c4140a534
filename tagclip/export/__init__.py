"""Export of a model, its vocabulary baked in or an input, and what runs the files."""
