"""The models. Each file has a network (``nn.Module``) and the LightningModule that trains it."""

from lit_models.airbench import AirbenchNet, LitAirbench
from lit_models.base import LitBase, ModelError
from lit_models.cnn import LeNet, LitCNN
from lit_models.dynamic import DynamicNet, LitDynamic
from lit_models.mlp import LitMLP, mlp
from lit_models.transfer import LitTransfer

__all__ = [
    "AirbenchNet",
    "DynamicNet",
    "LeNet",
    "LitAirbench",
    "LitBase",
    "LitCNN",
    "LitDynamic",
    "LitMLP",
    "LitTransfer",
    "ModelError",
    "mlp",
]
