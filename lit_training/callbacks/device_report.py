"""Print the shapes of each device's input and output in the first step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class DeviceReport(Callback):
    """Print, in the first training step, the input and output shapes of each device and of all devices together.

    Source: PyTorch tutorial "Data Parallelism", whose network prints "In Model" and whose loop prints "Outside".
    """

    def __init__(self) -> None:
        self.shapes: tuple[torch.Size, torch.Size] | None = None
        self.done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.done:
            self.hook = pl_module.register_forward_hook(self._keep_shapes)

    def _keep_shapes(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.shapes is None:  # DDP also calls the module around the step, but this inner call ends first
            self.shapes = inputs[0].shape, output.shape

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.done or self.shapes is None:
            return
        self.done = True
        self.hook.remove()
        input_size, output_size = self.shapes
        place = f"rank {trainer.global_rank} of {trainer.world_size}, {pl_module.device}"
        print(f"\tIn Model: input size {input_size} output size {output_size} ({place})", flush=True)
        rows = int(trainer.strategy.reduce(torch.tensor(input_size[0], device=pl_module.device), reduce_op="sum"))
        if trainer.is_global_zero:
            all_inputs, all_outputs = torch.Size([rows, *input_size[1:]]), torch.Size([rows, *output_size[1:]])
            print(f"Outside: input size {all_inputs} output_size {all_outputs}", flush=True)
