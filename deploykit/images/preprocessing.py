"""What a model's `preprocessor_config.json` does to an image, as transformers does it with Pillow.

A setting that would change the pixels in another way is refused by its name.
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

IMAGE_TOKENS_KEY = "image_tokens"  # into how many tokens the model divides an image, in the files of an artifact
READ = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "default_to_square", "image_processor_type", "feature_extractor_type"),
}
WITHOUT_EFFECT = {  # settings that change no pixel here, whatever their value
    *("processor_class", "_valid_processor_keys", "do_convert_rgb", "model_input_names", "use_fast", "return_tensors"),
    *("data_format", "input_data_format", "device", "disable_grouping", IMAGE_TOKENS_KEY),
}
SHORTEST_EDGE_TYPES = ("CLIP", "ChineseCLIP")  # processors for which a size of one number is that of the shorter edge


@dataclass(frozen=True)
class Preprocessing:
    """Steps in their order; a step that is None is left out.

    `resize` is (height, width), or the length of the shorter edge; `resample` is the number of Pillow's filter; `crop`
    is cut from the middle; `scale` multiplies each value, 0 to 255; `mean` and `deviation` normalize each colour.
    """

    resize: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Reads settings as transformers writes them, in the spelling of old or new versions.

        Raises:
            ValueError: one of them is not supported.
            KeyError: one is missing.
        """
        for name, value in settings.items():
            if name not in READ | WITHOUT_EFFECT and value not in (None, False):
                raise ValueError(f"{name}: {value!r} would change the pixels in a way that is not supported")
        kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
        square = settings.get("default_to_square", not kind.startswith(SHORTEST_EDGE_TYPES))
        resizes, crops = settings.get("do_resize", True), settings.get("do_center_crop", False)
        resize = _size(settings["size"], square=square) if resizes else None
        crop = _size(settings["crop_size"], square=True) if crops else None
        if not isinstance(crop or resize, tuple):
            raise ValueError("images would differ in size: expected a crop_size, or a size of height and width")
        smallest = (resize, resize) if isinstance(resize, int) else resize or (0, 0)
        if isinstance(crop, tuple) and any(part > whole for part, whole in zip(crop, smallest, strict=True)):
            raise ValueError(f"crop_size {crop} is larger than size {resize}")
        normalizes = settings.get("do_normalize", True)
        return cls(
            resize=resize,
            resample=int(settings["resample"]) if resizes else 0,
            crop=cast(tuple[int, int] | None, crop),
            scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
            mean=_colours(settings["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
            deviation=_colours(settings["image_std"]) if normalizes else (1.0, 1.0, 1.0),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return cast(tuple[int, int], self.crop or self.resize)

    def pixels(self, image: bytes | Path) -> npt.NDArray[np.float32]:
        """Returns what the model reads of an image, `(3, height, width)`; raises an ImageError if it is damaged."""
        resized = self._resized(image)
        if self.crop:
            left, top = (resized.width - self.crop[1]) // 2, (resized.height - self.crop[0]) // 2
            resized = resized.crop((left, top, left + self.crop[1], top + self.crop[0]))
        values = np.asarray(resized, dtype=np.float32) * np.float32(self.scale)
        mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
        return np.ascontiguousarray(((values - mean) / deviation).transpose(2, 0, 1))

    def resized_png(self, image: bytes | Path) -> bytes:
        """Returns the resized image as a PNG file; its pixels are the same."""
        stream = io.BytesIO()
        self._resized(image).save(stream, format="PNG", optimize=True)
        return stream.getvalue()

    def _resized(self, image: bytes | Path) -> Any:
        """Returns the image as Pillow has it; raises an ImageError if its longer edge would become far too long."""
        whole = decoding.decode(decoding.read_bytes(image))
        width, height = size = whole.size
        if isinstance(self.resize, int):
            short, long = sorted((width, height))
            longer = int(self.resize * long / short)
            size = (self.resize, longer) if width <= height else (longer, self.resize)
            if self.resize * longer > decoding.MAX_PIXELS:
                raise ImageError(f"the image has {width} x {height} pixels: it is too narrow. Cut it")
        elif self.resize:
            size = self.resize[::-1]
        return whole if size == whole.size else whole.resize(size, self.resample)


def _size(value: Any, *, square: bool) -> tuple[int, int] | int:
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return int(value["height"]), int(value["width"])
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        return int(value["shortest_edge"])
    if isinstance(value, int):
        return (value, value) if square else value
    raise ValueError(f"the size {value!r} is not supported: expected height and width, or shortest_edge")


def _colours(value: Any) -> tuple[float, ...]:
    colours = tuple(map(float, value))
    if len(colours) != 3:
        raise ValueError(f"images have three colours, and image_mean or image_std has {len(colours)}")
    return colours
