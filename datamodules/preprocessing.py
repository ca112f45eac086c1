"""Define how a picture becomes the input of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from datamodules.errors import DataError


@dataclass(frozen=True)
class Preprocessing:
    """Settings to resize, crop and normalize a picture. Sizes are in pixels. The defaults are usual for ImageNet."""

    image_size: int = 224  # side of the network's square input
    resize_size: int = 256  # length of the shorter side after resizing, before the center crop
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # per channel, for pixels in [0, 1]
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # per channel
    interpolation: str = "bilinear"
    resize: str = "crop"  # how a picture becomes square: crop the center, pad with the mean color, or squash it

    def __post_init__(self) -> None:
        if self.resize not in ("crop", "pad", "squash"):
            raise DataError(f"resize must be crop, pad or squash, but is {self.resize}: --data.resize pad")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Preprocessing:
        """Build a Preprocessing from a dict. Missing keys get the defaults. Unknown keys are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in (values or {}).items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def at_size(self, image_size: int | None) -> Preprocessing:
        """Return a copy with this ``image_size`` and scale ``resize_size`` by the same factor. None changes nothing."""
        if not image_size:
            return self
        resize_size = round(image_size * self.resize_size / self.image_size)
        return replace(self, image_size=image_size, resize_size=resize_size)
