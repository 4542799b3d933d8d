"""Radiographs as the records hold them: 8-bit grey PNG, short side at most 512.

PNG because it is lossless: training, evaluation and image reconstruction see the pixels that the reader gave, with no
second JPEG compression, at the cost of bytes.
"""

import io
from typing import Any

from PIL import Image
from PIL.Image import Resampling

from modeling_alta.radiograph_alta import read_radiograph


__all__ = ["SHORT_SIDE", "TooSmallError", "encode_image", "encode_png", "shrink"]

SHORT_SIDE = 512
MIN_SIDE = 8  # less is no picture of anything; the reader itself takes any size
PNG_LEVEL = 4  # hardly larger than the default level 6, and faster


class TooSmallError(ValueError):
    """The image has a side that no radiograph has."""


def encode_image(image: Any, short_side: int = SHORT_SIDE) -> dict[str, bytes | None]:
    """
    Encode one radiograph for an image column.

    Args:
        image: whatever `read_radiograph` reads.
        short_side (`int`): longest short side in pixels; a larger image is scaled down (bicubic, antialiased).

    Returns:
        `dict`: `bytes`, a PNG of one 8-bit channel, and `path`, `None`.

    Raises:
        `ValueError`: the image cannot be decoded or is too large (see `read_radiograph`), or has a side of less than
            8 pixels.
    """
    return {"bytes": encode_png(shrink(read_radiograph(image, short_side=short_side), short_side)), "path": None}


def shrink(grey: Image.Image, short_side: int = SHORT_SIDE) -> Image.Image:
    """Scale an 8-bit image down to a short side of `short_side` pixels; a smaller one stays as it is."""
    if min(grey.size) < min(MIN_SIDE, short_side):
        raise TooSmallError(f"`image` must have at least {MIN_SIDE} pixels a side, got {grey.width} x {grey.height}.")
    scale = short_side / min(grey.size)
    if scale >= 1:
        return grey
    return grey.resize([round(side * scale) for side in grey.size], Resampling.BICUBIC)


def encode_png(grey: Image.Image) -> bytes:
    """An 8-bit grey image as the bytes of a PNG."""
    buffer = io.BytesIO()
    grey.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
