"""How a picture becomes a network's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """Sizes in pixels; ``mean`` and ``std`` per channel, of pixels in [0, 1].

    The defaults are those of the PyTorch tutorial "Transfer Learning for Computer Vision" (ImageNet's). A checkpoint
    holds the same values as a plain dict, see :meth:`from_dict` and :meth:`to_dict`.
    """

    image_size: int = 224
    """Side of the square that the network sees."""
    resize_size: int = 256
    """Length that the shorter side is resized to before the centre is cut out."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    interpolation: str = "bilinear"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Preprocessing:
        """Build it from what a model or a checkpoint says; missing keys get their defaults, others are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in (values or {}).items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def at_size(self, image_size: int | None) -> Preprocessing:
        """The same for pictures of another size: what is resized grows with it. None changes nothing."""
        if not image_size:
            return self
        resize_size = round(image_size * self.resize_size / self.image_size)
        return replace(self, image_size=image_size, resize_size=resize_size)
