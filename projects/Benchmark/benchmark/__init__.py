"""Time and memory of every stage, beside the plain ViT and the released sequence of operations."""
