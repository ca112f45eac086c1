"""The folder, the files, the checkpoints and the processes of a training run."""
