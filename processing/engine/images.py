"""Radiographs as the records hold them: 8-bit grey PNG, or TIFF without compression, short side at most 512.

Both are lossless: training, evaluation and image reconstruction see the pixels that the reader gave, with no second
JPEG compression, at the cost of bytes.
"""

import io
from typing import Any

from PIL import Image
from PIL.Image import Resampling

from modeling_alta.radiograph_alta import read_radiograph


__all__ = [
    "IMAGE_FORMATS",
    "SHORT_SIDE",
    "TooSmallError",
    "check_image_format",
    "encode_image",
    "encode_picture",
    "shrink",
]

SHORT_SIDE = 512
MIN_SIDE = 8  # less is no picture of anything; the reader itself takes any size
IMAGE_FORMATS = {"png": {"compress_level": 4}, "tiff": {}}  # 4 is hardly larger than the default 6, and faster


class TooSmallError(ValueError):
    """The image has a side that no radiograph has."""


def encode_image(image: Any, short_side: int = SHORT_SIDE, image_format: str = "png") -> dict[str, bytes | None]:
    """
    Encode one radiograph for an image column.

    Args:
        image: whatever `read_radiograph` reads.
        short_side (`int`): longest short side in pixels; a larger image is scaled down (bicubic, antialiased).
        image_format (`str`): "png", or "tiff" without compression, larger and faster to read
            (`benchmarks/README.md`).

    Returns:
        `dict`: `bytes`, a picture of one 8-bit channel, and `path`, `None`.

    Raises:
        `ValueError`: the image cannot be decoded or is too large (see `read_radiograph`), or has a side of less than
            8 pixels; an unknown `image_format`.
    """
    grey = shrink(read_radiograph(image, short_side=short_side), short_side)
    return {"bytes": encode_picture(grey, image_format), "path": None}


def shrink(grey: Image.Image, short_side: int = SHORT_SIDE) -> Image.Image:
    """Scale an 8-bit image down to a short side of `short_side` pixels; a smaller one stays as it is."""
    if min(grey.size) < min(MIN_SIDE, short_side):
        raise TooSmallError(f"`image` must have at least {MIN_SIDE} pixels a side, got {grey.width} x {grey.height}.")
    scale = short_side / min(grey.size)
    if scale >= 1:
        return grey
    return grey.resize([round(side * scale) for side in grey.size], Resampling.BICUBIC)


def encode_picture(grey: Image.Image, image_format: str = "png") -> bytes:
    """An 8-bit grey image as the bytes of a picture; see [`encode_image`]."""
    check_image_format(image_format)
    buffer = io.BytesIO()
    grey.save(buffer, image_format, **IMAGE_FORMATS[image_format])
    return buffer.getvalue()


def check_image_format(image_format: str) -> None:
    """
    Raises:
        `ValueError`: a format that records do not come in.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"`image_format` must be one of {list(IMAGE_FORMATS)}, got {image_format!r}.")
