"""Images damaged at random: decoded, or refused with one of two reasons; never anything else.

The mutations of `damaged` change, repeat, move, remove and exchange bytes, with an eye to headers.
"""

import io
import random
import time

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources import images
from data_prep.sources.images import TOO_LARGE, UNDECODABLE, ImageProblem


def seeds():
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    kinds = [
        (image, "JPEG", {}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "PNG", {}),
        (image.quantize(16), "PNG", {}),
        (image, "PNG", {"save_all": True, "append_images": [image.rotate(180)]}),
        (image, "WEBP", {}),
        (image, "WEBP", {"lossless": True}),
        (image, "WEBP", {"save_all": True, "append_images": [image.rotate(180)]}),
        (image, "TIFF", {}),
        (image, "TIFF", {"compression": "tiff_lzw"}),
        (image, "TIFF", {"compression": "jpeg"}),
        (image.convert("1"), "TIFF", {"compression": "group4"}),
        (image, "BMP", {}),
        (image.quantize(16), "BMP", {}),
        (image, "PPM", {}),
        (image.convert("1"), "PPM", {}),
    ]
    result = []
    for image, kind, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        result.append(buffer.getvalue())
    return result


SEEDS = seeds()
EDITS = ("set", "set early", "flip", "flip early", "cut", "remove", "repeat", "splice", "insert")


def damaged(seed, edits):
    """A seed after edits (what, where, how far, bytes)."""
    data = bytearray(SEEDS[seed])
    for edit, where, length, content in edits:
        place = where % max(1, min(len(data), 64) if edit.endswith("early") else len(data))
        if edit.startswith("set"):
            data[place : place + len(content)] = content
        elif edit.startswith("flip") and data:
            data[place] ^= 1 << length % 8
        elif edit == "cut":
            del data[place:]
        elif edit == "remove":
            del data[place : place + length]
        elif edit == "repeat":
            data[place:place] = data[place : place + length] * (1 + length % 5)
        elif edit == "splice":
            other = SEEDS[length % len(SEEDS)]
            data[place:] = other[where % len(other) :]
        elif edit == "insert":
            data[place:place] = content
    return bytes(data)


def decode(data):
    """Whether the bytes are an image; fails on anything but an image or a known reason."""
    try:
        image = images.decode_image(data)
    except ImageProblem as problem:
        reason = str(problem)
    else:
        reason = None
    if reason:
        assert reason in (TOO_LARGE, UNDECODABLE)
        return False
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= images.MAX_PIXELS
    return True


@pytest.fixture(autouse=True)
def quiet():
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    yield
    cv2.utils.logging.setLogLevel(level)


edit = st.tuples(st.sampled_from(EDITS), st.integers(0, 2**16), st.integers(0, 300), st.binary(max_size=8))


@settings(max_examples=4000)
@given(st.integers(0, len(SEEDS) - 1), st.lists(edit, max_size=4))
def test_damaged_images(seed, edits):
    whole = decode(damaged(seed, edits))
    assert whole or edits


@settings(max_examples=1000)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBPVP8", b"II*\0", b"BM", b"P5 "]),
    st.binary(),
)
def test_random_bytes(start, data):
    decode(start + data)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_images():
    dice = random.Random(0)
    decoded, slowest = 0, (0.0, -1)
    for number in range(100_000):
        edits = [
            (dice.choice(EDITS), dice.randrange(2**16), dice.randrange(300), dice.randbytes(dice.randrange(9)))
            for _ in range(dice.randint(1, 4))
        ]
        data = damaged(dice.randrange(len(SEEDS)), edits)
        begin = time.perf_counter()
        decoded += decode(data)
        slowest = max(slowest, (time.perf_counter() - begin, number))
    print(f"100000 inputs, {decoded} decoded, the slowest (number {slowest[1]}) in {slowest[0]:.2f} s")
    # A fuzzer all of whose inputs are refused at once, or none, finds nothing.
    assert 1000 < decoded < 99_000
