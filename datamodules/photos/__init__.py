"""Photos, in this order: find, decode, scan, split and folder (none of them imports torch), then the datasets."""
