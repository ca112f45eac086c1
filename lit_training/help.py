"""The short help of scripts/fit.py, answered before torch is imported; a test holds it against the parser."""

FIT_HELP = """\
usage: python scripts/fit.py [--data DATA] [--model MODEL] [flags]

Train a network. With no flag: LeNet on generated pictures, under a minute on two CPU cores, no download.

what
  --data DATA              a folder of photos, or CIFAR10DataModule, ImageFolderDataModule,
                           RandomDataModule, ShapesDataModule
  --model MODEL            LitCNN (LeNet), LitMLP (nn.Sequential; linear net), LitDynamic (random depth),
                           LitTransfer (pretrained backbone); each has its usual data
  --config FILE            settings from YAML: scripts/recipes/*.yaml; flags win over it
how
  --max_epochs N           passes over the data
  --data.batch_size N      samples per step and device; global batch = N x devices x accumulated
  --model.lr X             learning rate
  --optimizer NAME         Adam, AdamW, ... instead of the model's own; --optimizer.lr X
  --lr_scheduler NAME      StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
  --seed N                 governs everything that is drawn (default 0)
where
  --accelerator NAME       cpu, gpu, mps, auto
  --devices N              how many; with --strategy ddp they train together
  --default_root_dir DIR   runs go to DIR/lightning_logs/version_N (default: here)

  --help_all               every flag, among them all of Lightning's Trainer
"""
