"""Print the shapes of the network's input and output on each device in the first step."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class DeviceReport(Callback):
    """Print the shapes on each device and for all devices together, as in the PyTorch tutorial "Data Parallelism"."""

    shapes: tuple[torch.Size, torch.Size] | None = None
    is_done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.is_done:
            self.hook = pl_module.register_forward_hook(self._keep_shapes)

    def _keep_shapes(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # DDP calls the model twice, nested: keep the inner call, which ends first
        self.shapes = self.shapes or (inputs[0].shape, output.shape)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.is_done or self.shapes is None:
            return
        self.is_done = True
        self.hook.remove()
        input_size, output_size = self.shapes
        device_text = f"rank {trainer.global_rank} of {trainer.world_size}, {pl_module.device}"
        print(f"\tIn Model: input size {input_size} output size {output_size} ({device_text})", flush=True)
        own_count = torch.tensor(input_size[0], device=pl_module.device)
        count = int(trainer.strategy.reduce(own_count, reduce_op="sum"))
        if trainer.is_global_zero:
            all_inputs, all_outputs = (torch.Size([count, *size[1:]]) for size in (input_size, output_size))
            print(f"Outside: input size {all_inputs} output_size {all_outputs}", flush=True)
