# my_model.py
import torch
from torch import Tensor, nn

from lit_models import LitBase


class Wide(LitBase):
    """One hidden layer on images of 32 x 32 pixels."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, width: int = 64, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        hidden, last = nn.Linear(in_channels * 32 * 32, width), nn.Linear(width, num_classes)
        self.net = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.1), last)
        self.make_metrics(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self):
        return self.build_optimizers(lambda groups: torch.optim.SGD(groups, self.hparams["lr"]), self.parameters())
