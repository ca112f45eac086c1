"""Data loading. The contents of a batch depend only on the seeds, the epoch and the position of the batch in it."""
