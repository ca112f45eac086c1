"""The models. Each file has a network (``nn.Module``) and the LightningModule that trains it."""

from lit_models.base import LitBase, ModelError
from lit_models.cnn import LeNet, LitCNN
from lit_models.dynamic import DynamicNet, LitDynamic
from lit_models.mlp import LitMLP, mlp
from lit_models.transfer import LitTransfer

__all__ = ["DynamicNet", "LeNet", "LitBase", "LitCNN", "LitDynamic", "LitMLP", "LitTransfer", "ModelError", "mlp"]
