"""Fully connected networks of the PyTorch tutorials. base.py has the training steps."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.optim import SGD

from lit_models.base import LitBase, ModelError


def mlp(in_features: int = 1000, hidden: Sequence[int] = (100,), out_features: int = 10) -> nn.Sequential:
    """Build a network of linear layers, with a ReLU after each layer except the last.

    Source: PyTorch tutorial "Learning PyTorch with Examples" (nn module). With ``hidden=()`` the network is a single
    linear layer, as in the tutorial "Data Parallelism".

    Input: (B, F) float32. Output: (B, K) float32. Parameters: 101,110 at the defaults.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise([in_features, *hidden, out_features]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LitMLP(LitBase):
    """:func:`mlp`, trained as in its tutorial: summed squared error, SGD without momentum.

    Args:
        in_features: number of inputs F.
        hidden: width of each hidden layer; empty for a single linear layer.
        out_features: number of outputs K.
        lr: learning rate.
    """

    task = "regression"
    reduction = "sum"
    default_data = "RandomDataModule"
    default_epochs = 1
    sample_ndim = 1

    def __init__(
        self, in_features: int = 1000, hidden: Sequence[int] = (100,), out_features: int = 10, lr: float = 1e-4
    ) -> None:
        super().__init__()
        hidden = tuple(hidden)
        if min(in_features, *hidden, out_features) < 1:
            problem = f"all widths must be at least 1, but are {in_features} -> {list(hidden)} -> {out_features}"
            fix = "--model.in_features 1000 --model.hidden '[100]' --model.out_features 10"
            raise ModelError(f"{problem}: {fix}")
        self.save_hyperparameters()
        self.net = mlp(in_features, hidden, out_features)
        self.make_metrics()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self):
        return self.build_optimizers(partial(SGD, lr=self.hparams["lr"]), self.parameters())
