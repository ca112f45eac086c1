"""Read and check folders of photos.

Before training, without torch: find lists the files, scan decodes them with decode, split chooses the validation set,
folder runs these steps. check reports problems. During training: dataset, store and transforms read the pictures.
"""
