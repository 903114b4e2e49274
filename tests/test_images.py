"""Images within limits, and their pixels as transformers makes them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pictures import PREPROCESSING, data_url, encoded, noise

from deploykit import images
from deploykit.errors import ImageError, InputError, ModelError
from deploykit.images import decoding
from deploykit.images.preprocessing import Preprocessing
from deploykit.images.tokens import PIXEL_VALUES, ImageTokenizer

PROCESSORS = {
    "ViT": {},
    "CLIP": {},
    "Siglip": {},
    "DeiT": {},
    "ViT-small": {"size": {"height": 30, "width": 45}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]},
    "CLIP-small": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}},
}
SHAPES = ((224, 224), (301, 97), (50, 333), (7, 5), (9, 2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(name):
    import transformers

    kind = name.partition("-")[0]
    made = getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor")
    processor = made(**PROCESSORS[name])
    preprocessing = Preprocessing.of(json.loads(processor.to_json_string()))
    for seed, (width, height) in enumerate(SHAPES):
        image = noise(width, height, seed)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        pixels = preprocessing.pixels(encoded(image))
        assert pixels.dtype == np.float32
        assert pixels.shape == (3, *preprocessing.size) == expected.shape
        np.testing.assert_allclose(pixels, expected, atol=1e-5)


def test_sizes_of_old_files_mean_what_they_meant():
    old = {"size": 224, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    vit = Preprocessing.of({**old, "feature_extractor_type": "ViTFeatureExtractor"})
    assert (vit.resize, vit.crop, vit.scale) == ((224, 224), None, 1 / 255)
    clip = Preprocessing.of(
        {**old, "feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": True, "crop_size": 224}
    )
    assert (clip.resize, clip.crop) == (224, (224, 224))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_pct": 0.875}, "crop_pct: 0.875"),
        ({"do_pad": True}, "do_pad: True"),
        ({"size": {"longest_edge": 8}}, "longest_edge"),
        ({"size": {"shortest_edge": 8}}, "differ in size"),
        ({"do_center_crop": True, "crop_size": 32}, "larger than size"),
        ({"image_mean": [0.5]}, "three colours"),
    ],
)
def test_settings_that_change_pixels_in_another_way_are_refused_by_name(changes, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSING, **changes}))
    with pytest.raises(ModelError, match=message):
        ImageTokenizer.load(tmp_path, 17)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"lacks 'size'"):
        ImageTokenizer.load(tmp_path, 17)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_formats_are_recognized_by_content(form):
    data = encoded(noise(), form)
    for value in (data, data_url(data, "gif"), data_url(data).partition(",")[2]):
        assert images.parse_image(value) == data
    assert decoding.decode(data).size == (20, 14)


def test_what_is_no_image_is_refused():
    gif = encoded(noise(), "GIF")
    for value, message in (
        (gif, "GIF8"),
        (data_url(gif), "PNG, JPEG or WebP"),
        ("no base64!", "base64"),
        ("photo.png", "base64"),
        (b"RIFF....AVI ", "PNG, JPEG or WebP"),
        (7, "int"),
        (b"\xff\xd8\xff" + bytes(images.MAX_BYTES), "at most 8388608"),
    ):
        with pytest.raises(ImageError, match=message):
            images.parse_image(value)


def test_damaged_images_and_those_of_too_many_pixels_are_refused(monkeypatch):
    data = encoded(noise(200, 200))
    with pytest.raises(ImageError, match="damaged"):
        decoding.decode(data[:-40])
    with pytest.raises(ImageError, match="damaged: its header"):
        decoding.decode(b"\x89PNG\r\n\x1a\n" + bytes(50))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 39_999)
    with pytest.raises(ImageError, match="200 x 200 pixels, at most 39999"):
        decoding.decode(data)


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded():
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match="pixels"):
        decoding.decode(bomb)


def colours_of(data):
    return np.asarray(decoding.decode(data)).reshape(-1, 3).tolist()


def test_images_are_turned_transparency_is_white_and_other_modes_become_rgb():
    from PIL import Image

    turned = noise(20, 14)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    assert decoding.decode(encoded(turned, "JPEG", exif=exif)).size == (14, 20)
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    assert colours_of(encoded(clear)) == [[255, 255, 255], [255, 0, 0]]
    for mode, form in (("L", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG")):
        assert decoding.decode(encoded(noise(5, 4, mode=mode), form)).mode == "RGB"
    palette = noise(5, 4).convert("P")
    assert decoding.decode(encoded(palette)).tobytes() == palette.convert("RGB").tobytes()
    deep = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    assert colours_of(encoded(deep)) == [[0] * 3, [1] * 3, [255] * 3]
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decoding.decode(moving).getpixel((0, 0)) == (255, 0, 0)


def test_files_are_read_up_to_the_limit_and_named(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    with pytest.raises(ImageError, match=r"photo\.png cannot be read"):
        decoding.read_bytes(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"photo\.png: an image must be"):
        decoding.read_bytes(path)
    path.write_bytes(encoded(noise()))
    assert images.parse_image(images.encode_base64(path)) == path.read_bytes()


def test_a_reduced_image_has_the_same_pixels():
    for settings in (
        PREPROCESSING,
        {**PREPROCESSING, "size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 16},
    ):
        preprocessing, data = Preprocessing.of(settings), encoded(noise(333, 51), "JPEG")
        reduced = preprocessing.resized_png(data)
        np.testing.assert_array_equal(preprocessing.pixels(reduced), preprocessing.pixels(data))


def test_an_image_that_would_become_too_long_is_refused():
    settings = {**PREPROCESSING, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224}
    with pytest.raises(ImageError, match="too narrow"):
        Preprocessing.of(settings).pixels(encoded(noise(2000, 1)))


def test_tokens_of_images_count_and_have_no_arrays():
    tokenizer = ImageTokenizer(Preprocessing.of(PREPROCESSING), 17)
    (features,) = tokenizer.make_features([encoded(noise())], [None])
    assert len(features) == tokenizer.max_tokens == 17
    assert tokenizer.collate([features.encoding] * 3) == {}
    assert list(features.arrays) == [PIXEL_VALUES]
    assert type(features.arrays) is not dict
    assert features.with_loaded_arrays().arrays[PIXEL_VALUES].shape == (3, 16, 16)
    with pytest.raises(InputError, match="without a text"):
        tokenizer.make_features([b""], ["a text"])


def test_pillow_is_imported_only_when_an_image_is_decoded():
    code = "import sys, deploykit.images, deploykit.tasks.image_classification; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
