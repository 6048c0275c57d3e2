"""Image files of unknown origin: decoded whole, or refused with a reason that can be counted."""

import re
import stat
import struct
from pathlib import Path

import cv2
import numpy as np

from data_prep.matching import Image
from mimic_jax import files, records

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_BYTES = 2**30
# A decoded image takes three bytes a pixel, a decoder as much again.
MAX_PIXELS = 2**28
# A progressive JPEG is gone over once a scan: ten of them are usual, a malicious file has thousands.
MAX_SCANNED = 2**32

TOO_LARGE = "image too large"
UNDECODABLE = "image cannot be decoded"

# White space and comments between the numbers of a PBM, PGM or PPM header.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P[1-6]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


class ImageProblem(Exception):
    """An image cannot be read. The message is the reason counted."""


def read_image(path: Path, upright: bool = True) -> Image:
    """RGB uint8, turned upright by its EXIF tag unless `upright` is False.

    The first page or frame of a file that has several; 16 bits a channel become 8, grey becomes RGB, and alpha is
    dropped (libtiff multiplies with it).

    Raises:
      ImageProblem: the file cannot be opened, is no whole image of a kind in SUFFIXES, or is too large.
    """
    return decode_image(_read(path), upright)


def read_jpeg(path: Path, quality: int) -> bytes:
    """JPEG bytes of an image file: unchanged where it is an RGB JPEG that every reader knows, encoded anew otherwise.

    Args:
      path: an image file.
      quality: of the new JPEG, 1 to 100.

    Raises:
      ImageProblem: as `read_image`; a JPEG has at most 65 500 pixels a side.
    """
    data = _read(path)
    image = decode_image(data)
    frame = _jpeg_frame(data) if data.startswith(b"\xff\xd8") else None
    # Baseline, extended and progressive, 8 bits, three channels; not lossless, arithmetic, grey or CMYK.
    if frame and frame[0] in (0xC0, 0xC1, 0xC2) and frame[1] == 8 and frame[4] == 3:
        return data
    if max(image.shape) > 65500:
        raise ImageProblem(TOO_LARGE)
    return records.encode_image(image, quality)


def decode_image(data: bytes, upright: bool = True) -> Image:
    """As `read_image`, from the file's bytes.

    Raises:
      ImageProblem: the bytes are no whole image of a kind in SUFFIXES, or it is too large.
    """
    try:
        size = _size(data)
    except (struct.error, IndexError):
        size = None
    if size is None:
        raise ImageProblem(UNDECODABLE)
    pixels = size[0] * size[1]
    # Within coded data a JPEG has 0 after 0xff, so that these two bytes are the beginning of a scan.
    scans = data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 1
    if pixels > MAX_PIXELS or pixels * scans > MAX_SCANNED:
        raise ImageProblem(TOO_LARGE)
    flags = cv2.IMREAD_COLOR_RGB if upright else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        # imread would fill what is missing of a truncated JPEG with grey; imdecode refuses it.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ImageProblem(UNDECODABLE)
    return image


def is_file(path: Path) -> bool:
    """Whether there is a file that can be reached; never raises."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(path: Path) -> bytes:
    try:
        # Opening a pipe would wait for a writer that never comes.
        if not files.is_remote(path) and not stat.S_ISREG(path.stat().st_mode):
            raise ImageProblem("not a regular file")
        if files.size(path) > MAX_BYTES:
            raise ImageProblem(TOO_LARGE)
        return path.read_bytes()
    except OSError as error:
        raise ImageProblem(f"image cannot be opened ({error.strerror or type(error).__name__})") from error


def _size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the file's header; None for what is of no kind in SUFFIXES.

    OpenCV decodes other kinds too, whatever the file's name; what is not asked for need not be trusted.

    Raises:
      struct.error, IndexError: the header is cut short.
    """
    if data.startswith(b"\xff\xd8"):
        frame = _jpeg_frame(data)
        return frame and (frame[3], frame[2])
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_size(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _tiff_size(data)
    if data.startswith(b"BM"):
        old = struct.unpack_from("<I", data, 14)[0] == 12
        width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
        # Rows from the top down have a negative height.
        return abs(width), abs(height)
    numbers = _PNM.match(data)
    return numbers and (int(numbers[1]), int(numbers[2]))


def _jpeg_frame(data: bytes) -> tuple[int, int, int, int, int] | None:
    """Kind (the marker's second byte), bits, height, width and channels of the first frame header; None without one."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0:
        marker = data[place + 1]
        if marker in (0x00, 0xFF):
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, *struct.unpack_from(">BHHB", data, place + 4)
        elif marker in (0x01, *range(0xD0, 0xD9)):
            place += 2
        elif marker in (0xD9, 0xDA):
            return None
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    channels = _PNG_CHANNELS.get(colour)
    # OpenCV fills as much memory as the header and the lengths of the chunks ask for before it finds that the file is
    # shorter. No byte of deflated data stands for more than 1032.
    if channels is None or width * height * channels * depth > 8 * 1032 * len(data):
        return None
    place = 8
    while data[place + 4 : place + 8] != b"IEND":
        place += 12 + struct.unpack_from(">I", data, place)[0]
    return width, height


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
        return width, height
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "<" if data.startswith(b"II") else ">"
    directory = struct.unpack_from(order + "I", data, 4)[0]
    size = {}
    for entry in range(struct.unpack_from(order + "H", data, directory)[0]):
        place = directory + 2 + 12 * entry
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
            value = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, place + 8)[0]
            size[tag] = max(value, size.get(tag, 0))
    return (size[_TIFF_WIDTH], size[_TIFF_HEIGHT]) if len(size) == 2 else None
