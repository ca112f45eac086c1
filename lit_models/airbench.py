"""The network of airbench94, which learns CIFAR-10 in seconds, and its optimizer. base.py has the training steps."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import PolynomialLR

from lit_models.base import LitBase, ModelError


class AirbenchNet(nn.Module):
    """A whitening layer, six 3x3 convolutions in three groups, and a linear layer on the maximum of each map.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", in the form of airbench94_muon.py (2025) in
    https://github.com/KellerJordan/cifar10-airbench.

    Input: (B, C, S, S) float32, S at least 9, pixels in [-1, 1]. Output: (B, K) float32, logits.
    Parameters: 1,972,792 at the defaults, 1,971,352 of them trained.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(in_channels, 8 * in_channels, 2)
        self.whiten.weight.requires_grad_(False)
        self.register_buffer("is_whitened", torch.tensor(False))
        narrow, wide = round(64 * width), round(256 * width)
        self.layers = nn.Sequential(nn.GELU())
        for index, (inputs, outputs) in enumerate(pairwise((8 * in_channels, narrow, narrow, *[wide] * 4))):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            nn.init.dirac_(conv.weight.data[:inputs])  # the first filters begin as copies of the input
            norm = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
            norm.weight.requires_grad_(False)
            self.layers.extend([conv, *([nn.MaxPool2d(2)] if index % 2 == 0 else []), norm, nn.GELU()])
        self.head = nn.Linear(wide, num_classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # convolutions are then faster, also on CPUs
        x = self.layers(self.whiten(x)).amax((2, 3))  # (B, 24, 31, 31), then (B, 256, 3, 3), then (B, 256)
        return self.head(x / x.shape[1])  # (B, K)


class MuonSGD(Optimizer):
    """SGD with Nesterov momentum; in groups with ``muon``, Muon (Jordan 2024). torch's Muon takes matrices only."""

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.85, muon: bool = False, bfloat16: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "muon": muon})
        self.bfloat16 = bfloat16  # of Muon's matrices; not in the groups, because a resume replaces these

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
                momentum = self.state[weight]["momentum_buffer"]
                update = weight.grad.add(momentum.mul_(group["momentum"]).add_(weight.grad), alpha=group["momentum"])
                if group["muon"]:
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
                    update = orthogonalize(update.flatten(1), self.bfloat16).view_as(weight)
                weight.sub_(update, alpha=group["lr"])
        return loss


def orthogonalize(matrix: Tensor, bfloat16: bool = False) -> Tensor:
    """Change the singular values of a matrix to about 1 by three Newton-Schulz iterations, optionally in bfloat16."""
    x = (matrix.bfloat16() if bfloat16 else matrix) / (matrix.norm() + 1e-7)
    for _ in range(3):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.to(matrix.dtype)


class LitAirbench(LitBase):
    """:class:`AirbenchNet`, trained as published: Muon for the convolutions, SGD for the rest, rates that fall to 0.

    Different from the publication: pixels in [-1, 1], not normalized by channel; random flips, shifts by up to 4 pixels
    with black borders and cutout, not alternating flips and shifts by 2 with mirrored borders; whitening by the first
    batch, not by 5,000 pictures; its bias is trained to the end; no weight decay; no mean over views in evaluation.

    Args:
        in_channels: channels C of the pictures.
        num_classes: number of classes K.
        width: the convolutions have 64, 256 and 256 channels times this factor.
        lr: learning rate of the convolutions.
        sgd_lr: learning rate of the biases for the summed loss of a step; the last layer has 12.6 times as much.
    """

    default_batch_size = 250
    wants_augmentation = True
    label_smoothing = 0.2

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, width: float = 1.0, lr: float = 0.24, sgd_lr: float = 0.053
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes) < 1 or not 0.02 <= width <= 16:
            raise ModelError("in_channels and num_classes must be at least 1, width from 0.02 to 16: --model.width 1")
        self.save_hyperparameters()
        half = [0.5] * in_channels
        self.preprocessing = {"image_size": 32, "resize_size": 32, "mean": half, "std": half}  # pixels in [-1, 1]
        self.net = AirbenchNet(in_channels, num_classes, width)
        self.make_metrics(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def shape_error(self, shape: tuple[int, ...]) -> str | None:
        channels = self.hparams["in_channels"]
        if len(shape) == 3 and shape[0] == channels and min(shape[1:]) >= 9:
            return None
        return f"it needs {channels} channels (--model.in_channels) of 9 x 9 pixels or more, not {shape}"

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Before the first step, set the first layer: filters, and their negatives, that whiten 2x2 patches."""
        if self.global_step or self.net.is_whitened:
            return
        patches = F.unfold(batch[0].float(), 2)  # (B, 4 C, places)
        moments = self.trainer.strategy.reduce((patches @ patches.mT).mean(0) / patches.shape[2], reduce_op="mean")
        values, vectors = torch.linalg.eigh(moments.double().cpu().nan_to_num())
        filters = (vectors / (values + 1e-4).sqrt()).T.reshape(-1, *self.net.whiten.weight.shape[1:])
        self.net.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.net.get_buffer("is_whitened").fill_(True)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.chosen_optimizer is None:  # MuonSGD's learning rates expect a sum over all pictures
            loss = loss * len(batch[0]) * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return loss

    def configure_optimizers(self):
        net, lr = self.net, self.hparams["sgd_lr"]
        filters = [weight for weight in net.layers.parameters() if weight.ndim == 4]
        biases = [net.whiten.bias, *(layer.bias for layer in net.layers if isinstance(layer, nn.BatchNorm2d))]
        groups: list[dict[str, Any]] = [
            {"params": filters, "name": "filters", "lr": self.hparams["lr"], "momentum": 0.6, "muon": True},
            {"params": biases, "name": "biases"},
            {"params": [net.head.weight], "name": "head", "lr": 12.6 * lr},
        ]
        if self.chosen_optimizer is not None:
            groups = [{"params": [weight for group in groups for weight in group["params"]]}]
        return self.build_optimizers(self.muon_sgd, groups, self.schedule)

    def muon_sgd(self, groups: Any) -> MuonSGD:
        """Use bfloat16 on CUDA as published, but only if the run does: not every GPU has it, and float32 is exact."""
        bfloat16 = self.device.type == "cuda" and "bf16" in str(self.trainer.precision)
        return MuonSGD(groups, self.hparams["sgd_lr"], bfloat16=bfloat16)

    def schedule(self, optimizer: Optimizer) -> dict[str, Any]:
        """Lower the learning rates linearly to 0, at each step."""
        linear: Any = PolynomialLR(optimizer, self.trainer.estimated_stepping_batches)  # type: ignore[arg-type]
        linear.total_steps = linear.total_iters  # the run cannot be extended beyond it
        return {"scheduler": linear, "interval": "step"}
