"""Cut random parts of many pictures and resize them all at once, with a few large kernels, as GPUs need them."""

import torch
from torch import Tensor

from datamodules.loading.device import copy_to

KINDS = ("bilinear", "bicubic")


def crop_and_resize(pixels: Tensor, places: Tensor, size: int, kind: str) -> Tensor:
    """Cut a box from each picture and resize it with antialiasing: (B, 3, size, size) uint8.

    ``pixels`` (n,) uint8 has all pictures one after another, each (3, H, W). ``places`` (B, 7) int64, on the CPU, has
    start, H and W of each picture, and top, left, height and width of each box. ``kind`` is one of KINDS.
    A pixel differs by 2 at most from that of torchvision's ``resize`` on a CPU.
    """
    rows, columns = (torch.arange(int(side), device=pixels.device) for side in places[:, 5:].amax(0))
    on_device = copy_to(places, pixels.device).view(-1, 7, 1, 1, 1)
    start, height, width, top, left, *sides = on_device.unbind(1)  # each (B, 1, 1, 1)
    channels = torch.arange(3, device=pixels.device).view(3, 1, 1)
    # pixels beyond the box have the weight 0
    lines = (channels * height + (top + rows[:, None]).minimum(height - 1)) * width
    crops = pixels[start + lines + (left + columns).minimum(width - 1)].float()  # (B, 3, h, w)
    down, across = (_weights(*pair, size, kind) for pair in zip(sides, (rows, columns), strict=True))
    narrow = (crops @ across.mT).round_().clamp_(0, 255)  # rounded, as on a CPU
    return (down @ narrow).round_().clamp_(0, 255).to(torch.uint8)


def _weights(sides: Tensor, places: Tensor, size: int, kind: str) -> Tensor:
    """Return the share of each pixel ``places`` (n,) in ``size`` new pixels for ``sides`` (B,): (B, 1, size, n)."""
    scale = (sides / size).view(-1, 1, 1)
    centers = (torch.arange(size, device=sides.device).view(-1, 1) + 0.5) * scale
    distance = ((places + 0.5 - centers) / scale.clamp(min=1)).abs()
    weights = (1 - distance).clamp(min=0)
    if kind == "bicubic":  # Keys 1981 with a = -0.5, as in Pillow
        near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, far).masked_fill(distance >= 2, 0)
    weights = weights.masked_fill(places >= sides.view(-1, 1, 1), 0)
    return (weights / weights.sum(-1, keepdim=True)).unsqueeze(1)
