"""A network whose number of layers can change in each forward pass. base.py has the training steps."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD

from lit_models.base import LitBase, ModelError

MAX_DEPTH = 3  # the middle layer is applied at most this many times


class DynamicNet(nn.Module):
    """A network of three linear layers. It applies the middle layer 0 to 3 times; this number is the depth.

    Source: PyTorch tutorial "Learning PyTorch with Examples" (control flow + weight sharing), 2017.

    In training mode the depth is drawn from torch's CPU generator in each forward pass. In evaluation mode the output
    is the mean of the outputs of all four depths.

    Input: (B, F) float32. Output: (B, K) float32. Parameters: 111,210 at the defaults.
    """

    def __init__(self, in_features: int = 1000, hidden: int = 100, out_features: int = 10) -> None:
        super().__init__()
        self.input_linear = nn.Linear(in_features, hidden)
        self.middle_linear = nn.Linear(hidden, hidden)
        self.output_linear = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        """Compute the output. If ``depth`` is given, only this depth is used, in training and evaluation mode."""
        h = self.input_linear(x).clamp(min=0)  # (B, hidden)
        if depth is None and not self.training:
            total = self.output_linear(h)  # (B, K)
            for _ in range(MAX_DEPTH):
                h = self.middle_linear(h).clamp(min=0)
                total = total + self.output_linear(h)
            return total / (MAX_DEPTH + 1)
        if depth is None:
            depth = int(torch.randint(0, MAX_DEPTH + 1, ()))
        for _ in range(depth):
            h = self.middle_linear(h).clamp(min=0)
        return self.output_linear(h)  # (B, K)


class LitDynamic(LitBase):
    """:class:`DynamicNet`, trained as in its tutorial: summed squared error, SGD with momentum.

    Args:
        in_features: number of inputs F.
        hidden: width of the middle layer.
        out_features: number of outputs K.
        lr: learning rate.
        momentum: momentum of SGD.
    """

    task = "regression"
    reduction = "sum"
    default_data = "RandomDataModule"
    default_epochs = 1
    sample_ndim = 1
    skips_layers = True  # at depth 0 the middle layer is not used
    same_random_numbers_on_all_ranks = True  # all devices must use the same depth in a step

    def __init__(
        self,
        in_features: int = 1000,
        hidden: int = 100,
        out_features: int = 10,
        lr: float = 1e-4,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if min(in_features, hidden, out_features) < 1:
            problem = f"all widths must be at least 1, but are {in_features} -> {hidden} -> {out_features}"
            raise ModelError(f"{problem}: --model.in_features 1000 --model.hidden 100 --model.out_features 10")
        self.save_hyperparameters()
        self.net = DynamicNet(in_features, hidden, out_features)
        self.make_metrics()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self):
        sgd = partial(SGD, lr=self.hparams["lr"], momentum=self.hparams["momentum"])
        return self.build_optimizers(sgd, self.parameters())
