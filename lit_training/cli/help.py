"""The short help of fit.py. It is plain text, so that it is printed before torch is imported."""

FIT_HELP = """\
usage: python scripts/fit.py [--data DATA] [--model MODEL] [flags]

Train a network. Without flags: LeNet on generated images, in less than one
minute on two CPU cores, without a download.

  --data DATA             folder of photos, or ImageFolderDataModule,
                          CIFAR10DataModule, RandomDataModule, ShapesDataModule
  --model MODEL           LitCNN (LeNet), LitMLP (nn.Sequential), LitDynamic
                          (random depth), LitTransfer (pretrained backbone)
  --config FILE           YAML file with settings; flags override it

  --max_epochs N          passes over the data
  --data.batch_size N     samples per step and device
  --model.lr X            learning rate
  --optimizer NAME        Adam, AdamW, ...; its arguments: --optimizer.lr X
  --lr_scheduler NAME     StepLR, CosineAnnealingLR, OneCycleLR or
                          ReduceLROnPlateau
  --early_stopping N      stop after N epochs without improvement
  --seed N                random seed (default 0); --seeds N trains N times
  --resume HOW            never (default), auto (newest run of the same
                          command), latest, or the folder of a run

  --accelerator NAME      cpu, gpu, mps or auto (default)
  --devices N             number of devices; add --strategy ddp for several
  --default_root_dir DIR  write to DIR/lightning_logs/version_N (default: here)
  --quiet                 print only the result
  --dashboard false       write no images to TensorBoard

  --help_all              every flag, including those of Lightning's Trainer
  --model.help LitCNN     the arguments of a class
"""
