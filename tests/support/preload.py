"""What the processes of tests/support/forks.py import before they are forked: what fit.py imports when it trains."""

import tensorboard  # noqa: F401
import torch

import lit_training.cli.fit
import lit_training.cli.folds
import lit_training.cli.parser
import lit_training.cli.seeds
import lit_training.cli.trouble
import lit_training.trained.report  # noqa: F401
import tests.support.forks  # noqa: F401

torch.set_num_threads(1)
