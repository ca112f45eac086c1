"""What happens around a run: command line, callbacks, checkpoints. Nothing is imported before it is asked for."""
