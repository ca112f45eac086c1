"""Read and check folders of photos.

The steps, in this order, without torch: find, decode, scan, split, near, folder. check finds problems before training.
dataset and store read the pictures during training.
"""
