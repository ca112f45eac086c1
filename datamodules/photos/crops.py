"""Cut random parts of many pictures and resize them all at once, with a few large kernels, as GPUs need them."""

import torch
from torch import Tensor

KINDS = ("bilinear", "bicubic")


def crop_and_resize(pixels: Tensor, pictures: Tensor, boxes: Tensor, size: int, kind: str) -> Tensor:
    """Cut a box from each picture and resize it with antialiasing: (B, 3, size, size) uint8.

    ``pixels`` (n,) uint8 has all pictures one after another, each (3, H, W). ``pictures`` (B, 3) int64 is the start, H
    and W of each, ``boxes`` (B, 4) int64 the top, left, height and width of each box. ``kind`` is one of KINDS.
    A pixel differs by 2 at most from that of torchvision's ``resize`` on a CPU.
    """
    start, height, width = pictures.view(-1, 3, 1, 1, 1).unbind(1)  # each (B, 1, 1, 1)
    top, left = boxes.view(-1, 4, 1, 1, 1).unbind(1)[:2]
    rows, columns = (torch.arange(int(sides.max()), device=pixels.device) for sides in boxes[:, 2:].unbind(1))
    channels = torch.arange(3, device=pixels.device).view(3, 1, 1)
    # pixels beyond the box have the weight 0
    places = (channels * height + (top + rows[:, None]).minimum(height - 1)) * width
    crops = pixels[start + places + (left + columns).minimum(width - 1)].float()  # (B, 3, h, w)
    down, across = (_weights(boxes[:, i], places, size, kind) for i, places in ((2, rows), (3, columns)))
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
