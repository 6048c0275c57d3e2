"""Image files of every kind against Pillow; what cannot be read is refused with its reason."""

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from data_prep.sources import images
from data_prep.sources.images import TOO_LARGE, UNDECODABLE, ImageProblem


def picture(width=61, height=47):
    """Smooth, so that lossy kinds stay close, and different in every corner and channel."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127 + 60 * np.sin(x / 9) * np.cos(y / 7))
    return PIL.Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows):
    """A PNG by its specification, for what Pillow does not write. Rows are without their filter byte."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(b"\0" + row) for row in rows) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Name: how it is written, and the greatest mean difference from what Pillow decodes.
LOSSLESS, LOSSY = 0, 3
KINDS = {
    "jpeg": (lambda image: encode(image, "JPEG", quality=90), 1),
    "progressive": (lambda image: encode(image, "JPEG", quality=90, progressive=True), 1),
    "jpeg 4:4:4": (lambda image: encode(image, "JPEG", quality=90, subsampling=0), 1),
    "grey jpeg": (lambda image: encode(image.convert("L"), "JPEG"), 1),
    "cmyk jpeg": (lambda image: encode(image.convert("CMYK"), "JPEG", quality=95), LOSSY),
    "png": (lambda image: encode(image, "PNG"), LOSSLESS),
    "grey png": (lambda image: encode(image.convert("L"), "PNG"), LOSSLESS),
    "palette png": (lambda image: encode(image.quantize(16), "PNG"), LOSSLESS),
    "1-bit png": (lambda image: encode(image.convert("1"), "PNG"), LOSSLESS),
    "webp": (lambda image: encode(image, "WEBP", quality=90), LOSSY),
    "lossless webp": (lambda image: encode(image, "WEBP", lossless=True), LOSSLESS),
    "animated webp": (lambda image: moving(image, "WEBP", lossless=True), LOSSLESS),
    "tiff": (lambda image: encode(image, "TIFF"), LOSSLESS),
    "lzw tiff": (lambda image: encode(image, "TIFF", compression="tiff_lzw"), LOSSLESS),
    "grey tiff": (lambda image: encode(image.convert("L"), "TIFF"), LOSSLESS),
    "two pages": (lambda image: moving(image, "TIFF"), LOSSLESS),
    "bmp": (lambda image: encode(image, "BMP"), LOSSLESS),
    "palette bmp": (lambda image: encode(image.quantize(16), "BMP"), LOSSLESS),
    "ppm": (lambda image: encode(image, "PPM"), LOSSLESS),
    "pgm": (lambda image: encode(image.convert("L"), "PPM"), LOSSLESS),
}
ANIMATED_PNG = "animated png"


def moving(image, kind, **options):
    return encode(image, kind, save_all=True, append_images=[image.rotate(180)], **options)


@pytest.mark.parametrize("size", [(61, 47), (1, 1), (1, 300), (20_000, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_pillow_sees(tmp_path, monkeypatch, kind, size):
    if kind.endswith("webp") and max(size) > 16383:
        pytest.skip("WebP has at most 16 383 pixels a side")
    write, tolerance = KINDS[kind]
    path = tmp_path / "image"
    path.write_bytes(write(picture(*size)))
    image = images.read_image(path)
    expected = np.asarray(PIL.Image.open(path).convert("RGB"))
    assert (image.shape, image.dtype) == ((size[1], size[0], 3), np.uint8)
    assert np.abs(image.astype(int) - expected).mean() <= tolerance
    # The limit is on the size that the header says.
    monkeypatch.setattr(images, "MAX_PIXELS", size[0] * size[1])
    images.read_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", size[0] * size[1] - 1)
    with pytest.raises(ImageProblem, match=TOO_LARGE):
        images.read_image(path)


def test_animated_png_is_its_first_frame():
    image = picture()
    assert np.array_equal(images.decode_image(moving(image, "PNG")), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped(kind):
    image = picture()
    image.putalpha(PIL.Image.fromarray(np.full((image.height, image.width), 128, np.uint8)))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = images.decode_image(encode(image, kind, **options)).astype(int)
    assert np.abs(decoded - np.asarray(image)[..., :3]).max() <= 1


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (0, 1), (6, 4)])
def test_16_bits_become_8(colour, channels):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels))
    data = png(7, 5, 16, colour, [row.astype(">u2").tobytes() for row in values])
    expected = np.broadcast_to(values[..., :3], (5, 7, 3)) / 257
    assert np.abs(images.decode_image(data) - expected).max() <= 1


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(tmp_path, tag, kind):
    exif = PIL.Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / "image"
    path.write_bytes(encode(picture(), kind, exif=exif, quality=95))
    stored = PIL.Image.open(path)
    for upright, expected in ((True, PIL.ImageOps.exif_transpose(stored)), (False, stored)):
        image = images.read_image(path, upright).astype(int)
        expected = np.asarray(expected.convert("RGB"))
        assert image.shape == expected.shape
        assert np.abs(image - expected).mean() < LOSSY


# Of two pages the first is whole when the second is cut.
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"two pages"}))
def test_cut_short_at_any_place(kind):
    data = KINDS[kind][0](picture(30, 20))
    images.decode_image(data)
    for length in range(0, len(data), max(1, len(data) // 60)):
        with pytest.raises(ImageProblem, match=UNDECODABLE):
            images.decode_image(data[:length])


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"BM", b"P6", b"P6 3 x", b"II*\0", b"RIFF", b"?" * 99]
)
def test_no_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageProblem, match=UNDECODABLE):
        images.read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "AVIF", "SGI"])
def test_kinds_not_asked_for_are_not_decoded(kind):
    with pytest.raises(ImageProblem, match=UNDECODABLE):
        images.decode_image(encode(picture(), kind))


def test_a_decompression_bomb_is_not_decoded():
    """33 KB that decode to 0.8 GB, and headers of every kind that ask for more."""
    side = 2**14
    bombs = [png(side, side + 1, 1, 0, [bytes(side // 8)] * (side + 1))]
    assert len(bombs[0]) < 2**16
    bombs.append(encode(picture(), "BMP"))
    bombs[-1] = bombs[-1][:18] + struct.pack("<ii", -(2**31), 2**31 - 1) + bombs[-1][26:]
    bombs.append(b"P6\n# a comment\n999999 999999\n255\n" + bytes(99))
    jpeg = encode(picture(), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    bombs.append(jpeg[: frame + 5] + struct.pack(">HH", 65500, 65500) + jpeg[frame + 9 :])
    webp = moving(picture(), "WEBP")
    assert webp[12:16] == b"VP8X"
    bombs.append(webp[:24] + b"\xff" * 6 + webp[30:])
    for order, magic in (("<", b"II*\0"), (">", b"MM\0*")):
        entries = (struct.pack(order + "HHII", tag, 4, 1, 2**20) for tag in (256, 257))
        bombs.append(magic + struct.pack(order + "IH", 8, 2) + b"".join(entries))
    for bomb in bombs:
        with pytest.raises(ImageProblem, match=TOO_LARGE):
            images.decode_image(bomb)


def test_a_small_png_that_says_it_is_large_is_not_begun():
    """OpenCV would take seconds to find that the pixels are missing."""
    data = png(2**13, 2**13, 8, 2, [bytes(99)])
    with pytest.raises(ImageProblem, match=UNDECODABLE):
        images.decode_image(data)
    # The densest there is: one bit a pixel, all black.
    assert images.decode_image(png(2**13, 2**13, 1, 0, [bytes(2**10)] * 2**13)).shape == (2**13, 2**13, 3)


def test_a_jpeg_of_a_great_many_scans_is_not_decoded():
    data = encode(picture(256, 256), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    few, many = (data[:-2] + last * count + data[-2:] for count in (20, 2**16))
    assert images.decode_image(few).shape == (256, 256, 3)
    with pytest.raises(ImageProblem, match=TOO_LARGE):
        images.decode_image(many)


def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "device.jpg"):
        with pytest.raises(ImageProblem, match="not a regular file"):
            images.read_image(tmp_path / name)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("gone.jpg")
    for name, reason in (
        ("loop.jpg", "Too many levels of symbolic links"),
        ("dangling.jpg", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("folder.jpg/../pipe.jpg/x", "Not a directory"),
    ):
        with pytest.raises(ImageProblem, match=rf"^image cannot be opened \({reason}\)$"):
            images.read_image(tmp_path / name)
        assert not images.is_file(tmp_path / name)


def test_a_file_without_permission(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(), "PNG"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("permissions do not bind this user: root?")
    with pytest.raises(ImageProblem, match=r"image cannot be opened \(Permission denied\)"):
        images.read_image(path)


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageProblem, match=TOO_LARGE):
        images.read_image(tmp_path / "huge.png")


@pytest.mark.parametrize(
    "name", [b"a b.png", "ü 日本.png".encode(), b"new\nline.png", b"-rf.png", b"\xff\xfe.png", b"%s{}.png"]
)
def test_any_name(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encode(picture(), "PNG"))
    assert np.array_equal(images.read_image(path), np.asarray(picture()))


@pytest.mark.parametrize("kind", KINDS)
def test_read_jpeg(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(KINDS[kind][0](picture()))
    jpeg = images.read_jpeg(path, 95)
    assert (jpeg == path.read_bytes()) == (kind in ("jpeg", "progressive", "jpeg 4:4:4"))
    stored, given = PIL.Image.open(io.BytesIO(jpeg)), PIL.Image.open(path)
    assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", given.size)
    assert np.abs(np.asarray(stored).astype(int) - np.asarray(given.convert("RGB"))).mean() < 12


def test_read_jpeg_of_what_a_jpeg_cannot_hold(tmp_path):
    (tmp_path / "wide.png").write_bytes(png(70_000, 1, 8, 0, [bytes(70_000)]))
    assert images.read_image(tmp_path / "wide.png").shape == (1, 70_000, 3)
    with pytest.raises(ImageProblem, match=TOO_LARGE):
        images.read_jpeg(tmp_path / "wide.png", 95)


def test_quality_is_that_asked_for(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture(), "PNG"))
    low, high = (PIL.Image.open(io.BytesIO(images.read_jpeg(tmp_path / "a.png", q))).quantization for q in (10, 95))
    assert max(low[0]) > 10 * max(high[0])
