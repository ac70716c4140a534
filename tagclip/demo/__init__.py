"""Many images through one predictor, and the files and videos that a command line names."""
