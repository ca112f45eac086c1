"""A pretrained backbone with a new head. Steps and metrics: base.py; what backbones are: backbones.py."""

from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from lit_models import backbones
from lit_models.base import LitBase, ModelError


class LitTransfer(LitBase):
    """A pretrained network whose last layer is replaced and trained, alone (``freeze``) or with all the rest.

    Source: PyTorch tutorial "Transfer Learning for Computer Vision" (Chilamkurthy 2017): SGD with momentum, the
    learning rate divided by ten every seven epochs.

    A frozen backbone gets no gradient and stays in evaluation mode: BatchNorm uses its stored statistics and keeps
    them, dropout is off. Pretrained weights are read once, when a fit starts that does not resume; building the model
    or opening its checkpoint needs neither network nor weights file.

    Args:
        backbone: a torchvision classification network by name, or ``timm/NAME``.
        num_classes: K.
        weights: ``DEFAULT`` (the published ones, downloaded), ``none``, or a ``.pth``/``.safetensors`` state dict.
        freeze: train the head alone; false fine-tunes all of it.
        lr: learning rate of the head.
        momentum: of SGD.
        step_size: epochs after which the learning rate is multiplied by ``gamma``.
        gamma: see ``step_size``.
        unfreeze_epoch: with ``freeze`` false, the epoch (from 0) before which the head trains alone.
        backbone_lr_factor: learning rate of the backbone as a multiple of the head's.

    Input: (B, 3, H, W) float32, normalised as ``preprocessing`` says; (B, F) is taken as features of the backbone, for
    the head alone. Output: (B, K) float32, logits. Parameters: 11,181,642 at the defaults, 5,130 of them in the head.

    Raises:
        ModelError: an unknown backbone, or an argument out of its range.
    """

    default_data = "ImageFolderDataModule"
    default_epochs = 25

    def __init__(
        self,
        backbone: str = "resnet18",
        num_classes: int = 10,
        weights: str | None = "DEFAULT",
        freeze: bool = True,
        lr: float = 0.001,
        momentum: float = 0.9,
        step_size: int = 7,
        gamma: float = 0.1,
        unfreeze_epoch: int = 0,
        backbone_lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ModelError(f"LitTransfer needs at least one output, not {num_classes}: --model.num_classes 10")
        if freeze and (unfreeze_epoch or backbone_lr_factor != 1.0):
            raise ModelError("unfreeze_epoch and backbone_lr_factor are for fine-tuning: add --model.freeze false")
        weights = None if weights is None or weights.lower() == "none" else weights
        self.save_hyperparameters()
        self.net, self.head_name = backbones.build(backbone, num_classes)
        self.preprocessing = backbones.preprocessing(backbone, self.net)
        self.wants_augmentation = not freeze
        self.skips_layers = unfreeze_epoch > 0
        self.weights_ready = weights is None
        if weights is None and freeze:
            rank_zero_warn(
                "weights=None with freeze: the frozen features are random; give --model.weights DEFAULT or a file"
            )
        self._make_metrics(num_classes)
        if freeze:
            self.net.requires_grad_(False)
            self.head.requires_grad_(True)
            self.net.eval()  # a Trainer leaves the modes as it finds them

    @property
    def head(self) -> nn.Module:
        """The layer that is trained even when all else is frozen."""
        return self.net.get_submodule(self.head_name)

    @property
    def fixed_features(self) -> bool:  # type: ignore[override]
        return self.hparams["freeze"]

    @property
    def backbone_frozen(self) -> bool:
        """Whether the backbone is frozen now: a function of the arguments and the epoch, so a resume needs no state."""
        epoch = self.current_epoch if self.is_attached else 0
        return self.hparams["freeze"] or epoch < self.hparams["unfreeze_epoch"]

    def train(self, mode: bool = True) -> "LitTransfer":
        super().train(mode)
        if self.backbone_frozen:
            self.net.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) if x.ndim == 2 else self.net(x)

    def features(self, x: Tensor) -> Tensor | None:
        """What the head sees: (B, F), without gradient; None where the head is not the last layer (squeezenet)."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
        try:
            with torch.no_grad():
                output = self.net(x)
        finally:
            hook.remove()
        return seen[0] if output is seen[1] and seen[0].ndim == 2 else None

    def on_fit_start(self) -> None:  # not setup(), which comes before a resumed fit has read its checkpoint
        if self.local_rank == 0:  # one process of a node downloads, the others find it in the cache
            self.load_pretrained()
        self.trainer.strategy.barrier()
        self.load_pretrained()

    def load_pretrained(self) -> None:
        """Read the pretrained weights, unless they, or those of a checkpoint, have been read.

        A fit does so by itself.

        Raises:
            ModelError: see :func:`lit_models.backbones.load`.
        """
        if not self.weights_ready:
            backbones.load(self.net, self.head_name, self.hparams["backbone"], self.hparams["weights"])
        self.weights_ready = True

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.weights_ready = True

    def on_train_epoch_start(self) -> None:
        if self.hparams["unfreeze_epoch"]:
            self.net.requires_grad_(not self.backbone_frozen)
            self.head.requires_grad_(True)
            self.train()

    def refuse_shape(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) == 3 and shape[0] == 3:
            return None
        return f"backbones take colour pictures (3, H, W), these are {shape} (--data.channels 3, or --model LitCNN)"

    def configure_optimizers(self):
        head = list(self.head.parameters())
        groups = [{"params": head, "name": "head"}]
        if not self.hparams["freeze"]:
            in_head = {id(parameter) for parameter in head}
            rest = [parameter for parameter in self.net.parameters() if id(parameter) not in in_head]
            groups.append({"params": rest, "name": "backbone", "lr_factor": self.hparams["backbone_lr_factor"]})
        sgd = partial(SGD, lr=self.hparams["lr"], momentum=self.hparams["momentum"])
        step = partial(StepLR, step_size=self.hparams["step_size"], gamma=self.hparams["gamma"])
        return self.with_choice(sgd, groups, step)
