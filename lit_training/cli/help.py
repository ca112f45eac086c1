"""The short help of fit.py, printed before torch is imported; a test compares it with the real parser."""

FIT_HELP = """\
usage: python scripts/fit.py [--data DATA] [--model MODEL] [flags]

Train a network. With no flag: LeNet on generated pictures, under a minute on two CPU cores, no download.

  --data DATA              a folder of photos, or CIFAR10DataModule, ImageFolderDataModule, RandomDataModule,
                           ShapesDataModule
  --model MODEL            LitCNN (LeNet), LitMLP (nn.Sequential; linear net), LitDynamic (random depth),
                           LitTransfer (pretrained backbone); each has its usual data
  --config FILE            settings from YAML: scripts/recipes/*.yaml; flags win over it

  --max_epochs N           passes over the data
  --data.batch_size N      samples per step and device; global batch = N x devices x accumulated
  --model.lr X             learning rate
  --optimizer NAME         Adam, AdamW, ... instead of the model's own; --optimizer.lr X
  --lr_scheduler NAME      StepLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
  --early_stopping N       stop after N epochs without improvement
  --seed N                 governs everything that is drawn (default 0); --seeds N repeats the run N times
  --resume HOW             never (default), auto (the newest run of the same command), latest or a run's folder

  --accelerator NAME       cpu, gpu, mps, auto (default)
  --devices N              how many; with --strategy ddp they train together
  --default_root_dir DIR   runs go to DIR/lightning_logs/version_N (default: here)
  --quiet                  print the result alone; --dashboard false leaves pictures out of TensorBoard

  --help_all               every flag, among them all of Lightning's Trainer; --model.help LitCNN: a class's
"""
