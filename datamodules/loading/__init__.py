"""Data loading. The contents of a batch depend only on the seed, the epoch and the batch's position."""
