"""The network whose graph changes at every forward pass. Steps and metrics: base.py."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD

from lit_models.base import LitBase, ModelError

MAX_DEPTH = 3


class DynamicNet(nn.Module):
    """One middle layer, used 0 to 3 times, drawn anew at every forward pass in training.

    Source: PyTorch tutorial "Learning PyTorch with Examples" (control flow + weight sharing), 2017.

    The draw comes from torch's CPU generator, so ``torch.manual_seed`` fixes it. In evaluation mode nothing is drawn:
    the output is the mean of the outputs at the four depths, which is the expectation of the training draw.

    Input: (B, F) float32. Output: (B, K) float32. Parameters: 111,210 at the defaults.
    """

    def __init__(self, in_features: int = 1000, hidden: int = 100, out_features: int = 10) -> None:
        super().__init__()
        self.input_linear = nn.Linear(in_features, hidden)
        self.middle_linear = nn.Linear(hidden, hidden)
        self.output_linear = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        """``depth`` (0 to 3) fixes how often the middle layer is used."""
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
    """:class:`DynamicNet`, trained as in its source: squared error summed, SGD with momentum.

    Args:
        in_features: F.
        hidden: width of the shared middle layer.
        out_features: K.
        lr: learning rate.
        momentum: of SGD.

    Raises:
        ModelError: a width below 1.
    """

    task = "regression"
    reduction = "sum"
    default_data = "RandomDataModule"
    default_epochs = 1
    sample_ndim = 1
    skips_layers = True  # a depth of 0 leaves the middle layer without gradient
    draws_per_batch = True  # one depth for the union of the devices' batches, as one process would use it

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
            raise ModelError(
                f"LitDynamic needs widths of 1 or more, not {in_features} -> {hidden} -> {out_features}: "
                "--model.in_features 1000 --model.hidden 100 --model.out_features 10"
            )
        self.save_hyperparameters()
        self.net = DynamicNet(in_features, hidden, out_features)
        self._make_metrics()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self):
        sgd = partial(SGD, lr=self.hparams["lr"], momentum=self.hparams["momentum"])
        return self.with_choice(sgd, self.parameters())
