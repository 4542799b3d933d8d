"""Pixel arrays to 8-bit grey levels, and how many pixels a file may have."""

from collections.abc import Callable

import numpy as np


__all__ = ["check_num_pixels", "grey_of_array", "grey_of_float_picture", "map_values"]

MAX_TABLE = 2**20


def check_num_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that announces more pixels than `max_pixels`; to be called before it is decoded.

    Raises:
        `ValueError`: too many pixels.
    """
    if width * height > max_pixels:
        raise ValueError(
            f"it must have at most {max_pixels:,} pixels, got {width} x {height} (`max_pixels` sets the limit)."
        )


def map_values(pixels: np.ndarray, show: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """
    Apply `show` once to each value that occurs: an image has far fewer values than pixels.

    Args:
        pixels (`np.ndarray` of integers, any shape): the values.
        show (`Callable`): takes the sorted values that occur, gives their grey levels in 0..255.

    Returns:
        `np.ndarray` of `uint8`: the grey levels, rounded, in the shape of `pixels`.
    """
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= MAX_TABLE:
        values, index = np.unique(pixels, return_inverse=True)
        return np.rint(show(values.astype(np.int64))).astype(np.uint8)[index.reshape(pixels.shape)]
    index = np.subtract(pixels, low, dtype=np.int32 if pixels.itemsize <= 2 else np.int64)
    occurs = np.zeros(high - low + 1, bool)
    occurs[index] = True
    table = np.zeros(len(occurs), np.uint8)
    table[occurs] = np.rint(show(np.flatnonzero(occurs) + low))
    return table[index]


def grey_of_array(pixels: np.ndarray) -> np.ndarray:
    """
    Grey levels of an array of pixels.

    Args:
        pixels (`np.ndarray` of shape `(height, width)`, `(height, width, 1 or 3)` or `(1 or 3, height, width)`):
            integers from 0 up, divided by their maximum if that is above 255, or floats in 0..1.

    Returns:
        `np.ndarray` of `uint8` and of shape `(height, width)` or `(height, width, 3)`.

    Raises:
        `ValueError`: another shape, dtype or range.
    """
    pixels = _with_channels_last(pixels)
    kind = pixels.dtype.kind
    if kind not in "iuf":
        raise ValueError(f"`image` must hold integers or floats, got the dtype {pixels.dtype}.")
    low, high = pixels.min(), pixels.max()
    if kind == "f":
        if not (low >= 0 and high <= 1):  # written so that a NaN fails too
            raise ValueError(f"`image` of floats must be finite and lie in 0..1, got values from {low} to {high}.")
        return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    if low < 0:
        raise ValueError(f"`image` must hold values from 0 up, got values from {low} to {high}.")
    return map_values(pixels, lambda values: values * 255 / values[-1]) if high > 255 else pixels.astype(np.uint8)


def grey_of_float_picture(pixels: np.ndarray) -> np.ndarray:
    """Grey levels of a picture of floats, which has no fixed range: up to 1 a fraction, above that a grey value."""
    high = pixels.max()
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and high > 1):
        return grey_of_array(pixels)
    return np.rint(pixels.astype(np.float64) * (255 / max(high, 255))).astype(np.uint8)


def _with_channels_last(pixels: np.ndarray) -> np.ndarray:
    if pixels.size and pixels.ndim == 2:
        return pixels
    if pixels.size and pixels.ndim == 3:
        if pixels.shape[-1] not in (1, 3) and pixels.shape[0] in (1, 3):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.shape[-1] in (1, 3):
            return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    raise ValueError(
        "`image` must have the shape (height, width), (height, width, 1 or 3) or (1 or 3, height, width), "
        f"got {tuple(pixels.shape)}."
    )
