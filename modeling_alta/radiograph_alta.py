"""Any radiograph to 8-bit grey: DICOM, PNG, JPEG or TIFF, a PIL image, an array or a tensor."""

import errno
import io
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .dicom_alta import read_dicom
from .pixels_alta import check_num_pixels, grey_of_array, grey_of_float_picture


__all__ = ["MAX_PIXELS", "is_system_failure", "read_radiograph"]

MAX_PIXELS = 100_000_000  # six times the largest detector
# Pillow would also open formats that start other programs, such as EPS.
PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
DICOM_SUFFIXES = (".dcm", ".dicom")
DRAFT_MARGIN = 1.2
EXIF_ORIENTATION = 0x0112
TIFF_PHOTOMETRIC = 262
# What these say holds for the path whenever it is read; other errors of the system may be gone the next time.
ERRORS_OF_THE_PATH = frozenset(
    (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM)
)


def read_radiograph(image: Any, short_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Read one radiograph, whatever it comes as, into 8-bit grey.

    Values above 8 bits are scaled by the maximum of the image, never clipped; only files of 16 bits with colour or
    alpha are read by their high bytes. A DICOM is shown through its VOI LUT or window, scaled over the range of their
    output; without one, 8-bit = round(pixel * 255 / maximum of the image). MONOCHROME1 is inverted, padding black.
    Transparent pixels become black. Rotation by EXIF is applied. A picture file of several pages gives its first page.

    Args:
        image (`str`, `Path`, `bytes`, `dict`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            the path or the encoded bytes of a DICOM, PNG, JPEG or TIFF; the `{"bytes", "path"}` of `datasets`; a PIL
            image of any mode; or pixels of shape `(height, width)`, `(height, width, 1 or 3)` or
            `(1 or 3, height, width)`: `uint8` as they are, other integers from 0 up (divided by their maximum if that
            is above 255), floats in 0..1.
        short_side (`int`, *optional*): a larger image is scaled down to this short side in pixels, bicubic and
            antialiased. Of a large JPEG the decoder does the coarse part, in about half the time or less and within 2
            grey levels of the full way on average; of lines too fine for the result, at most a third is left as
            moire. Without it, the image has its own size.
        max_pixels (`int`, defaults to 100,000,000): the most pixels that the header of a file may announce; more is
            refused before anything is decoded. Pillow refuses by `PIL.Image.MAX_IMAGE_PIXELS` of its own too.

    Returns:
        `PIL.Image.Image`: mode "L", a copy of its own.

    Raises:
        `FileNotFoundError`: no such path.
        `OSError`: the disk, the network or the process's limits failed, as in [`is_system_failure`].
        `ValueError`: a file that is empty, cannot be decoded or has more than `max_pixels` (with its path), a DICOM
            without pixel data or of several frames, pixels of another shape or outside their range.
        `TypeError`: anything else was passed.
        `ImportError`: a DICOM where pydicom, or the package that decodes its transfer syntax, is not installed.
    """
    if short_side is not None and short_side < 1:
        raise ValueError(f"`short_side` must be at least 1, got {short_side}.")
    grey = _read(image, short_side, max_pixels)
    if short_side is None or min(grey.size) <= short_side:
        return grey
    return grey.resize(_fitted_size(grey.size, short_side), Image.Resampling.BICUBIC)


def is_system_failure(error: BaseException | None) -> bool:
    """
    Whether an error comes of a failing disk or network, or of too many open files, so that it says nothing about the
    file that was read. Pillow's errors about damaged content are `OSError`s too, but without a number.

    Args:
        error (`BaseException`, *optional*): it or its `__cause__` is looked at.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None and error.errno not in ERRORS_OF_THE_PATH:
            return True
        error = error.__cause__
    return False


def _read(image: Any, short_side: int | None, max_pixels: int) -> Image.Image:
    if isinstance(image, (str, Path, bytes, bytearray, memoryview, Mapping)):
        return _from_content(*_load_content(image), short_side, max_pixels)
    if isinstance(image, Image.Image):
        return _decoded(partial(_from_picture, max_pixels=max_pixels), image, f"a PIL image of mode {image.mode}")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return _from_array((image.float() if image.dtype == torch.bfloat16 else image).numpy())
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise TypeError(
        "`image` must be a path, encoded bytes, a dict of `bytes` and `path`, a PIL image, an array or a tensor, "
        f"got {type(image).__name__}."
    )


def _load_content(image: Any) -> tuple[bytes, str]:
    """The encoded bytes, and what to call them in an error."""
    if isinstance(image, (str, Path)):
        return _read_path(Path(image)), str(image)
    if not isinstance(image, Mapping):
        return bytes(image), "encoded bytes"
    content, path = image.get("bytes"), image.get("path")
    if content is not None:
        return content, str(path or "encoded bytes")
    if path is not None:
        return _read_path(Path(path)), str(path)
    raise ValueError(
        f"`image` must hold `bytes` or `path` when it is a dict, got the keys {sorted(image)} without them."
    )


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`image` must be the path of a radiograph, got {path}, which does not exist."
        ) from error
    except (OSError, ValueError) as error:
        if is_system_failure(error):
            raise
        raise ValueError(f"`image` must be the path of a readable file, got {path}: {error}") from error


def _from_content(content: bytes, source: str, short_side: int | None, max_pixels: int) -> Image.Image:
    if not content:
        raise ValueError(f"`image` must be a DICOM, PNG, JPEG or TIFF, got {source}, which is empty (0 bytes).")
    if content[128:132] == b"DICM" or source.lower().endswith(DICOM_SUFFIXES):
        return _decoded(partial(_from_dicom, max_pixels=max_pixels), content, source)
    return _decoded(partial(_from_encoded, short_side=short_side, max_pixels=max_pixels), content, source)


def _decoded(decode: Callable[[Any], Image.Image], content: Any, source: str) -> Image.Image:
    """Decoders raise almost any error on damaged content; the caller gets one kind, with the path in it."""
    try:
        return decode(content)
    except ImportError as error:
        raise ImportError(f"`image` cannot be decoded here, got {source}: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"`image` must be a DICOM, PNG, JPEG or TIFF, got {source}, which is none of them."
        ) from error
    except Exception as error:
        if is_system_failure(error):
            raise
        raise ValueError(f"`image` must be a radiograph that can be decoded, got {source}: {error}") from error


def _from_dicom(content: bytes, max_pixels: int) -> Image.Image:
    return _as_picture(read_dicom(content, max_pixels))


def _from_encoded(content: bytes, short_side: int | None, max_pixels: int) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
        size = picture.size
        check_num_pixels(*size, max_pixels)
        box = _draft(picture, short_side) if short_side is not None and short_side < min(size) else None
        grey = _grey_of(picture)
        if box is not None:
            grey = grey.resize(_fitted_size(size, short_side), Image.Resampling.BICUBIC, box)
        return _upright(grey, picture)


def _draft(picture: Image.Image, short_side: int) -> tuple[float, float, float, float] | None:
    """
    Have a JPEG decoded as grey, at 1/2, 1/4 or 1/8 where that leaves enough; other formats stay as they are.

    The decoder averages pixels, a weak filter: at less than `DRAFT_MARGIN` times the result, lines too fine for it
    would come out as moire. Its size is rounded up; what is returned is the box of it that is image.
    """
    least = ceil(DRAFT_MARGIN * short_side)
    drafted = picture.draft("L", (least, least))
    return None if drafted is None else drafted[1]


def _from_picture(picture: Image.Image, max_pixels: int) -> Image.Image:
    check_num_pixels(*picture.size, max_pixels)  # it may be a file that is not loaded yet
    return _upright(_grey_of(picture), picture)


def _grey_of(picture: Image.Image) -> Image.Image:
    """Grey of a picture of any mode, not turned by its EXIF; the picture itself if it is grey already."""
    if picture.mode[0] in "FI":
        pixels = np.asarray(picture)
        grey = _as_picture(grey_of_float_picture(pixels) if picture.mode == "F" else grey_of_array(pixels))
        # Pillow inverts 8 bits with 0 for white, but not more.
        return ImageOps.invert(grey) if _is_zero_white(picture) else grey
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture if picture.mode == "L" else picture.convert("RGB").convert("L")


def _is_zero_white(picture: Image.Image) -> bool:
    return picture.format == "TIFF" and picture.tag_v2.get(TIFF_PHOTOMETRIC) == 0


def _upright(grey: Image.Image, picture: Image.Image) -> Image.Image:
    """A copy of `grey`, turned as the EXIF of the loaded `picture` says."""
    grey.getexif()[EXIF_ORIENTATION] = picture.getexif().get(EXIF_ORIENTATION, 1)
    return ImageOps.exif_transpose(grey)


def _from_array(pixels: np.ndarray) -> Image.Image:
    return _as_picture(grey_of_array(pixels))


def _as_picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("L")


def _fitted_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    width, height = (round(side * short_side / min(size)) for side in size)
    return width, height
