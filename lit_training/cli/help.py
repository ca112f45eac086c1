"""The short help of fit.py. It is plain text, so that fit.py can print it without importing torch."""

FIT_HELP = """\
usage: python scripts/fit.py [--data DATA] [--model MODEL] [flags]

Train a network; without flags LeNet on generated images (less than a minute).

  --data DATA             folder of photos, or ImageFolderDataModule,
                          CIFAR10DataModule, RandomDataModule, ShapesDataModule
  --model MODEL           LitCNN (LeNet), LitMLP, LitDynamic (random depth),
                          LitTransfer (pretrained), LitAirbench (CIFAR-10)
  --config FILE           YAML file with settings; flags override it

  --max_epochs N          number of passes over the training data
  --data.batch_size N     samples per step and device
  --model.lr X            learning rate
  --optimizer NAME        Adam, AdamW, ...; its arguments as in --optimizer.lr X
  --lr_scheduler NAME     StepLR, CosineAnnealingLR, OneCycleLR or
                          ReduceLROnPlateau
  --monitor NAME:max|min  metric of the best epoch, such as val_f1:max
  --early_stopping N      stop after N epochs without improvement
  --seed N                random seed (default 0); --seeds N: train with N seeds
  --folds 5 --repeats 3   measure by cross-validation, then train on everything
  --resume HOW            never (default), auto (newest run of the same
                          command), latest, or the folder of a run (with
                          --photos DIR if its photos are in another place now)

  --accelerator NAME      cpu, gpu, mps or auto (default); --compile true
  --devices N             number of devices; --threads N: threads of each
  --default_root_dir DIR  write to DIR/lightning_logs/version_N (default: .)
  --quiet                 print only the result; --dashboard false: no pictures

  --help_all              every flag; --model.help LitCNN: arguments of a class
"""
