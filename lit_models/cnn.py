"""LeNet, the first convolutional network of the PyTorch tutorials. base.py has the training steps."""

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from lit_models.base import LitBase, ModelError


class LeNet(nn.Module):
    """A network of two convolutions and three linear layers.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", in the form of the PyTorch
    tutorials "Neural Networks" (one channel) and "Training a Classifier" (three channels).

    Input: (B, C, 32, 32) float32, pixels in [-1, 1]. Output: (B, K) float32, logits.
    Parameters: 62,006 at the defaults, 61,706 with one channel.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (B, 6, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (B, 16, 5, 5)
        x = x.flatten(1)  # (B, 400)
        x = F.relu(self.fc1(x))  # (B, 120)
        x = F.relu(self.fc2(x))  # (B, 84)
        return self.fc3(x)  # (B, K)


class LitCNN(LitBase):
    """:class:`LeNet`, trained as in "Training a Classifier": cross-entropy loss, SGD with momentum.

    Args:
        in_channels: 1 (gray) or 3 (color).
        num_classes: number of classes K.
        lr: learning rate.
        momentum: momentum of SGD.
        loss: ``cross_entropy``, or ``squared_error`` on float targets (B, K), as in the tutorial "Neural Networks".
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        lr: float = 0.001,
        momentum: float = 0.9,
        loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ModelError(f"in_channels must be 1 or 3, but is {in_channels}: --model.in_channels 3")
        if num_classes < 1:
            raise ModelError(f"num_classes must be at least 1, but is {num_classes}: --model.num_classes 10")
        if loss not in ("cross_entropy", "squared_error"):
            raise ModelError(f"loss must be cross_entropy or squared_error, but is {loss}: --model.loss cross_entropy")
        self.save_hyperparameters()
        self.task = "classification" if loss == "cross_entropy" else "regression"
        half = [0.5] * in_channels
        self.preprocessing = {"image_size": 32, "resize_size": 32, "mean": half, "std": half}  # pixels in [-1, 1]
        self.net = LeNet(in_channels, num_classes)
        self.make_metrics(num_classes if self.task == "classification" else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def shape_error(self, shape: tuple[int, ...]) -> str | None:
        expected = (self.hparams["in_channels"], 32, 32)
        if shape == expected:
            return None
        return f"LeNet needs pictures of shape {expected}, not {shape} (--data.image_size 32, --model.in_channels)"

    def configure_optimizers(self):
        sgd = partial(SGD, lr=self.hparams["lr"], momentum=self.hparams["momentum"])
        return self.build_optimizers(sgd, self.parameters())
