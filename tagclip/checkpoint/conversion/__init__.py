"""Files of other projects into checkpoints and CLIP weights of ours."""
