"""Computes the pixels that a model reads, with the same results as transformers' image processors on Pillow.

The steps follow from the model's `preprocessor_config.json`. A setting that would change the pixels in an unsupported
way is refused, and the message names it.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from deploykit.errors import ImageError
from deploykit.images import decoding

IMAGE_TOKENS_KEY = "image_tokens"  # setting that deploykit adds: the number of tokens that the model has for an image
SUPPORTED_SETTINGS = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "default_to_square", "image_processor_type", "feature_extractor_type"),
}
SETTINGS_WITHOUT_EFFECT = {  # they change no pixel here, whatever their value
    *("processor_class", "_valid_processor_keys", "do_convert_rgb", "model_input_names", "use_fast", "return_tensors"),
    *("data_format", "input_data_format", "device", "disable_grouping", IMAGE_TOKENS_KEY),
}
SHORTEST_EDGE_TYPES = ("CLIP", "ChineseCLIP")  # processors that read a `size` of one number as that of the shorter edge


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to the pixels that a model reads, in their order; None leaves out a step."""

    resize: tuple[int, int] | int | None  # to (height, width), or to this length of the shorter edge
    resample: int  # number of Pillow's filter for it
    crop: tuple[int, int] | None  # (height, width) of the part that is cut from the middle
    scale: float  # factor of the values, which are 0 to 255
    mean: tuple[float, ...]  # is then subtracted from each channel: red, green and blue
    deviation: tuple[float, ...]  # divides each channel at last

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Reads the steps from the settings of a `preprocessor_config.json` of any version of transformers.

        Raises:
            ValueError: a setting is not supported, or images would differ in size.
            KeyError: a setting is missing.
        """
        for name, value in settings.items():
            if name not in SUPPORTED_SETTINGS | SETTINGS_WITHOUT_EFFECT and value not in (None, False):
                raise ValueError(f"{name}: {value!r} would change the pixels in a way that is not supported")
        kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
        square = settings.get("default_to_square", not kind.startswith(SHORTEST_EDGE_TYPES))
        resizes, crops = settings.get("do_resize", True), settings.get("do_center_crop", False)
        resize = _parse_size(settings["size"], square=square) if resizes else None
        crop = _parse_size(settings["crop_size"], square=True) if crops else None
        if not isinstance(crop or resize, tuple):
            raise ValueError("images would differ in size: expected a crop_size, or a size of height and width")
        min_size = (resize, resize) if isinstance(resize, int) else resize or (0, 0)  # of a resized image
        if isinstance(crop, tuple) and any(cut > whole for cut, whole in zip(crop, min_size, strict=True)):
            raise ValueError(f"crop_size {crop} is larger than size {resize}")
        normalizes = settings.get("do_normalize", True)
        return cls(
            resize=resize,
            resample=int(settings["resample"]) if resizes else 0,
            crop=cast(tuple[int, int] | None, crop),
            scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
            mean=_parse_channels(settings["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
            deviation=_parse_channels(settings["image_std"]) if normalizes else (1.0, 1.0, 1.0),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the model reads."""
        return cast(tuple[int, int], self.crop or self.resize)

    def pixels(self, image: bytes | Path) -> npt.NDArray[np.float32]:
        """Returns the pixels that the model reads, `(3, height, width)`; raises ImageError if the image is damaged."""
        resized = self._resized(image)
        if self.crop:
            left, top = (resized.width - self.crop[1]) // 2, (resized.height - self.crop[0]) // 2
            resized = resized.crop((left, top, left + self.crop[1], top + self.crop[0]))
        values = np.asarray(resized, dtype=np.float32) * np.float32(self.scale)
        mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
        return np.ascontiguousarray(((values - mean) / deviation).transpose(2, 0, 1))

    def resized_png(self, image: bytes | Path) -> bytes:
        """Returns the resized image as a PNG file; `pixels` gives the same for it as for the original."""
        stream = io.BytesIO()
        self._resized(image).save(stream, format="PNG", optimize=True)
        return stream.getvalue()

    def _resized(self, image: bytes | Path) -> Any:
        """Returns the image of Pillow after the step `resize`.

        Raises:
            ImageError: it is so narrow that it would have more than `MAX_PIXELS` pixels, or it is damaged.
        """
        original = decoding.decode(decoding.read_bytes(image))
        width, height = size = original.size
        if isinstance(self.resize, int):
            shorter, longer = sorted((width, height))
            new_longer = int(self.resize * longer / shorter)
            size = (self.resize, new_longer) if width <= height else (new_longer, self.resize)
            if self.resize * new_longer > decoding.MAX_PIXELS:
                raise ImageError(f"the image has {width} x {height} pixels: it is too narrow. Cut it")
        elif self.resize:
            size = self.resize[::-1]  # Pillow has the width first
        return original if size == original.size else original.resize(size, self.resample)


def _parse_size(value: Any, *, square: bool) -> tuple[int, int] | int:
    """Returns a size in the settings as (height, width), or as the length of the shorter edge.

    Args:
        value: of the setting; a single number is for both edges if `square` is true, else for the shorter edge.
        square: what a single number means.

    Raises:
        ValueError: the value has another form.
    """
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return int(value["height"]), int(value["width"])
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        return int(value["shortest_edge"])
    if isinstance(value, int):
        return (value, value) if square else value
    raise ValueError(f"the size {value!r} is not supported: expected height and width, or shortest_edge")


def _parse_channels(value: Any) -> tuple[float, ...]:
    """Returns the numbers of a setting for red, green and blue; raises ValueError if there are not three."""
    channels = tuple(map(float, value))
    if len(channels) != 3:
        raise ValueError(f"images have three colours, and image_mean or image_std has {len(channels)}")
    return channels
