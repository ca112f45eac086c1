"""Folders of photos.

The steps, in this order: find, decode, scan, split, folder. These modules do not import torch. The modules dataset,
store and transforms read the pictures during training. The module check finds problems before training.
"""
