"""A pretrained network with a new head. base.py has the training steps, backbones.py the networks."""

from functools import partial, reduce
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from torchvision.transforms import v2

from lit_models import backbones
from lit_models.base import LitBase, ModelError

MIXES = {"none": (), "mixup": (v2.MixUp,), "cutmix": (v2.CutMix,), "both": (v2.MixUp, v2.CutMix)}
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
BACKBONE_LR_FACTOR = 0.03


class LitTransfer(LitBase):
    """A pretrained network with a new last layer, the head. The other layers, the backbone, are trained or frozen.

    Source: PyTorch tutorial "Transfer Learning for Computer Vision" (Chilamkurthy 2017). The defaults differ from it:
    AdamW (Loshchilov and Hutter 2019) on batches of 32 photos. The recipes transfer_*.yaml train as in the tutorial.
    A frozen backbone gets no gradient and stays in evaluation mode. The pretrained weights are loaded when a new fit
    starts. They are not needed to build the model, to load its checkpoint or to resume a fit.

    Args:
        backbone: name of a classification network of torchvision, or ``timm/NAME``.
        num_classes: number of classes K.
        weights: ``DEFAULT`` (the published weights, downloaded), ``none``, a ``.pth``/``.safetensors`` state dict, or a
            checkpoint of a LitTransfer. In a checkpoint, the head's rows of known classes are used too.
        freeze: True trains only the head, False trains all layers (fine-tuning).
        lr: learning rate of the head.
        momentum: None trains with AdamW. BatchNorm then keeps the statistics of the pretrained weights, so that small
            batches do not harm fine-tuning. A number trains with SGD of this momentum, and BatchNorm updates them.
        weight_decay: weight decay of the head with AdamW. Pretrained layers have 0.05.
        step_size: number of epochs after which the learning rate is multiplied by ``gamma``.
        gamma: factor by which the learning rate is multiplied.
        unfreeze_epoch: with fine-tuning, the first epoch (from 0) that also trains the backbone.
        backbone_lr_factor: the learning rate of the backbone is ``lr`` times this factor.
        label_smoothing: share of each training target that is spread evenly over all classes (Szegedy et al. 2016).
        mix: mix each training picture and its target with another one of the batch: ``mixup`` (Zhang et al. 2018)
            blends the two pictures, ``cutmix`` (Yun et al. 2019) pastes a rectangle, ``both`` chooses one per batch.
        average_flips: in evaluation, average the logits of each picture and its mirror image (Krizhevsky et al. 2012).
            A frozen backbone averages them in training too, so that its features are the same in both.

    Input: (B, 3, H, W) float32, normalized as in ``preprocessing``, or ``features`` (B, F). Output: (B, K) logits.
    Parameters: 11,181,642 at the defaults, 5,130 of them in the head.
    """

    default_data = "ImageFolderDataModule"
    default_epochs = 25
    default_batch_size = 32

    def __init__(
        self,
        backbone: str = "resnet18",
        num_classes: int = 10,
        weights: str | None = "DEFAULT",
        freeze: bool = True,
        lr: float = 0.003,
        momentum: float | None = None,
        step_size: int = 1,
        gamma: float = 0.85,
        unfreeze_epoch: int = 0,
        backbone_lr_factor: float = BACKBONE_LR_FACTOR,
        weight_decay: float = 1.0,
        label_smoothing: float = 0.0,
        mix: Literal["none", "mixup", "cutmix", "both"] = "none",
        average_flips: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ModelError(f"num_classes must be at least 1, but is {num_classes}: --model.num_classes 10")
        if freeze and (unfreeze_epoch or mix != "none" or backbone_lr_factor not in (1.0, BACKBONE_LR_FACTOR)):
            raise ModelError("unfreeze_epoch, backbone_lr_factor and mix need fine-tuning: add --model.freeze false")
        if not 0 <= label_smoothing < 1:
            raise ModelError(f"label_smoothing must be in [0, 1), not {label_smoothing}: --model.label_smoothing 0.1")
        weights = None if str(weights).lower() == "none" else weights
        self.save_hyperparameters()
        self.net, self.head_name = backbones.build(backbone, num_classes)
        self.preprocessing: dict[str, Any] = backbones.preprocessing(backbone, self.net)
        self.fixed_features = freeze
        self.wants_augmentation = not freeze
        self.label_smoothing = label_smoothing
        self.skips_layers = unfreeze_epoch > 0
        self.weights_ready = weights is None
        self.half_precision = False
        self.loaded = ""  # what load_pretrained() has read from a checkpoint
        if weights is None and freeze:
            rank_zero_warn("weights=None with freeze: the frozen backbone is random; give --model.weights DEFAULT")
        self.make_metrics(num_classes)
        self.net.requires_grad_(not freeze)
        self.head.requires_grad_(True)
        self.net.to(memory_format=torch.channels_last)  # see to()
        self.train()

    @property
    def head(self) -> nn.Module:
        """The last layer, which is always trained."""
        return reduce(getattr, self.head_name.split("."), self.net)  # get_submodule() is slower

    @property
    def backbone_frozen(self) -> bool:
        """True if the backbone is frozen in the current epoch."""
        return self.hparams["freeze"] or self.current_epoch < self.hparams["unfreeze_epoch"]

    def train(self, mode: bool = True) -> "LitTransfer":
        super().train(mode)
        if self.backbone_frozen:
            self.net.eval()
        elif self.hparams["momentum"] is None and self.hparams["weights"]:
            for module in self.net.modules():
                if isinstance(module, BATCHNORMS):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.head(x)
        if not self.hparams["average_flips"] or (self.training and not self.fixed_features):
            return self.net(x)
        return (self.net(x.flip(-1)) + self.net(x)) / 2  # x last, so that --explain draws its map

    def features(self, x: Tensor) -> Tensor | None:
        """Return the head's inputs, (B, F), averaged as in ``forward``, without gradient; None if it is not last."""
        views = [x.flip(-1), x] if self.hparams["average_flips"] else [x]
        calls: list[tuple[Tensor, Tensor]] = []  # the input and the output of the head
        with torch.no_grad(), self.head.register_forward_hook(lambda _, args, output: calls.append((*args, output))):
            outputs = [self.net(view) for view in views]
        head_input = torch.stack([head_input for head_input, _ in calls]).mean(0)
        return head_input if outputs[-1] is calls[-1][1] and head_input.ndim == 2 else None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if kinds := MIXES[self.hparams["mix"]]:
            batch = v2.RandomChoice([kind(num_classes=self.hparams["num_classes"]) for kind in kinds])(*batch)
        return super().training_step(batch, batch_idx)

    def to(self, *args: Any, **kwargs: Any) -> "LitTransfer":
        """Move the network. Its memory layout becomes ``channels_last`` where convolutions are then faster."""
        super().to(*args, **kwargs)
        # on CPUs up to 40 % (measured); tensor cores use this layout
        is_faster = self.device.type == "cpu" or (self.device.type == "cuda" and self.half_precision)
        self.net.to(memory_format=torch.channels_last if is_faster else torch.contiguous_format)
        return self

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.half_precision = "16" in str(self.trainer.precision)  # before the Trainer calls to()

    # setup() would be too early: a resumed fit reads its checkpoint after it, and then needs no pretrained weights.
    def on_fit_start(self) -> None:
        if self.local_rank == 0:  # one process per machine downloads; the others wait, then read the cache
            self.load_pretrained()
        self.trainer.strategy.barrier()
        self.load_pretrained()

    def load_pretrained(self) -> None:
        """Load the pretrained weights if no weights are loaded yet; see :func:`lit_models.backbones.load`."""
        if not self.weights_ready:
            backbone, weights = self.hparams["backbone"], self.hparams["weights"]
            self.loaded = backbones.load(self.net, self.head_name, backbone, weights, self.class_names)
        self.weights_ready = True

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.weights_ready = True

    def on_train_epoch_start(self) -> None:
        if self.hparams["unfreeze_epoch"]:
            self.net.requires_grad_(not self.backbone_frozen)
            self.head.requires_grad_(True)
            self.train()

    def shape_error(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 3 or shape[0] != 3:
            return f"backbones need color pictures (3, H, W), not {shape} (--data.channels 3, or --model LitCNN)"
        usual_size = self.preprocessing["image_size"]
        if shape[1:] == (usual_size, usual_size):
            return None
        self.net.eval()  # no dropout, and the statistics of BatchNorm stay as they are
        try:  # vision transformers accept one size, and other networks have a smallest size
            with torch.no_grad():  # in setup(), self.device is a GPU, but the weights are still on the CPU
                self.net(torch.zeros(1, *shape, device=next(self.net.parameters()).device))
        except (AssertionError, RuntimeError, ValueError) as error:
            problem = f"{self.hparams['backbone']} cannot use pictures {shape} ({' '.join(str(error).split())})"
            return f"{problem}: --data.image_size {usual_size}"
        finally:
            self.train(self.training)
        return None

    def configure_optimizers(self):
        lr, momentum = self.hparams["lr"], self.hparams["momentum"]
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "name": "head"}]
        if not self.hparams["freeze"]:
            prefix = f"{self.head_name}."
            backbone = [parameter for name, parameter in self.net.named_parameters() if not name.startswith(prefix)]
            groups.append({"params": backbone, "name": "backbone", "lr_factor": self.hparams["backbone_lr_factor"]})
            if momentum is None and self.chosen_optimizer is None:
                groups[1]["weight_decay"] = 0.05
        adamw = partial(AdamW, lr=lr, weight_decay=self.hparams["weight_decay"])
        optimizer = adamw if momentum is None else partial(SGD, lr=lr, momentum=momentum)
        step_lr = partial(StepLR, step_size=self.hparams["step_size"], gamma=self.hparams["gamma"])
        return self.build_optimizers(optimizer, groups, step_lr)
