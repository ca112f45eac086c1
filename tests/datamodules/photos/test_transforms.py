"""The faster transform gives the same result as torchvision's."""

import torch
from torchvision.transforms import v2

from datamodules import Preprocessing
from datamodules.photos.transforms import eval_transform


def test_cutting_a_strip_before_resizing_does_not_change_the_result() -> None:
    spec = Preprocessing(interpolation="bicubic")
    strip = torch.randint(0, 256, (3, 2, 30_000), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert eval_transform(spec)(strip).shape == (3, 224, 224)
    wide = torch.randint(0, 256, (3, 40, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    assert (eval_transform(spec)(wide).int() - plain(wide).int()).abs().max() <= 1
