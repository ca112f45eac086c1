"""A training run: its folder, files, checkpoints and processes."""
