"""Read and check folders of photos.

The steps, in this order, without torch: find, decode, scan, split, near, folder. check finds problems before training.
dataset, store and transforms read the pictures during training.
"""
