"""Any radiograph to 8-bit grey: DICOM, PNG, JPEG or TIFF, a PIL image, an array or a tensor."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError


try:  # only DICOM needs it
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing
except ImportError:
    pydicom = None

__all__ = ["read_radiograph"]

# Pillow would also open formats that start other programs, such as EPS.
PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
DICOM_SUFFIXES = (".dcm", ".dicom")


def read_radiograph(image: Any) -> Image.Image:
    """
    Read one radiograph, whatever it comes as, into 8-bit grey.

    Values above 8 bits are scaled by the maximum of the image, never clipped. A DICOM is shown through its VOI LUT or
    window, scaled over the range of their output; without one, 8-bit = round(pixel * 255 / maximum of the image).
    MONOCHROME1 is inverted. Transparent pixels become black. A picture file of several pages gives its first page.

    Args:
        image (`str`, `Path`, `bytes`, `dict`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            the path or the encoded bytes of a DICOM, PNG, JPEG or TIFF; the `{"bytes", "path"}` of `datasets`; a PIL
            image of any mode; or pixels of shape `(height, width)`, `(height, width, 1 or 3)` or
            `(1 or 3, height, width)`: `uint8` as they are, other integers from 0 up (divided by their maximum if that
            is above 255), floats in 0..1.

    Returns:
        `PIL.Image.Image`: mode "L", a copy of its own.

    Raises:
        `FileNotFoundError`: no such path.
        `ValueError`: a file that cannot be decoded (with its path), a DICOM without pixel data or of several frames,
            pixels of another shape or outside their range.
        `TypeError`: anything else was passed.
        `ImportError`: a DICOM where pydicom is not installed.
    """
    if isinstance(image, (str, Path)):
        return _read_path(Path(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _read_content(bytes(image), "encoded bytes")
    if isinstance(image, Mapping):
        return _read_mapping(image)
    if isinstance(image, Image.Image):
        return _decoded(_from_picture, image, f"a PIL image of mode {image.mode}")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return _from_array((image.float() if image.dtype == torch.bfloat16 else image).numpy())
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise TypeError(
        "`image` must be a path, encoded bytes, a dict of `bytes` and `path`, a PIL image, an array or a tensor, "
        f"got {type(image).__name__}."
    )


def _read_path(path: Path) -> Image.Image:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`image` must be the path of a radiograph, got {path}, which does not exist."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"`image` must be the path of a readable file, got {path}: {error}") from error
    return _read_content(content, str(path))


def _read_mapping(image: Mapping) -> Image.Image:
    content, path = image.get("bytes"), image.get("path")
    if content is not None:
        return _read_content(content, str(path or "encoded bytes"))
    if path is not None:
        return _read_path(Path(path))
    raise ValueError(
        f"`image` must hold `bytes` or `path` when it is a dict, got the keys {sorted(image)} without them."
    )


def _read_content(content: bytes, source: str) -> Image.Image:
    is_dicom = content[128:132] == b"DICM" or source.lower().endswith(DICOM_SUFFIXES)
    if is_dicom and pydicom is None:
        raise ImportError(f"`image` is a DICOM ({source}), which needs pydicom: `pip install pydicom`.")
    return _decoded(_from_dicom if is_dicom else _from_encoded, content, source)


def _decoded(decode: Callable[[Any], Image.Image], content: Any, source: str) -> Image.Image:
    """Decoders raise almost any error on damaged content; the caller gets one kind, with the path in it."""
    try:
        return decode(content)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"`image` must be a DICOM, PNG, JPEG or TIFF, got {source}, which is none of them."
        ) from error
    except Exception as error:
        raise ValueError(f"`image` must be a radiograph that can be decoded, got {source}: {error}") from error


def _from_encoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
        return _from_picture(picture)


def _from_picture(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        return _from_float_picture(np.asarray(picture))
    if picture.mode.startswith("I"):
        return _from_array(np.asarray(picture))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture if picture.mode == "L" else picture.convert("RGB").convert("L")


def _from_float_picture(pixels: np.ndarray) -> Image.Image:
    """A PIL image of mode F has no fixed range: up to 1 it is a fraction, above that a grey value."""
    if np.isfinite(pixels).all() and pixels.max() > 1:
        _check_not_negative(pixels)
        return _as_grey(_scale_to_maximum(pixels) if pixels.max() > 255 else pixels)
    return _from_array(pixels)


def _from_array(pixels: np.ndarray) -> Image.Image:
    pixels = _with_channels_last(pixels)
    kind = pixels.dtype.kind
    if kind not in "iuf":
        raise ValueError(f"`image` must hold integers or floats, got the dtype {pixels.dtype}.")
    if kind == "f":
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):  # written so that a NaN fails too
            raise ValueError(f"`image` of floats must be finite and lie in 0..1, got values from {low} to {high}.")
        return _as_grey(pixels.astype(np.float64) * 255)
    _check_not_negative(pixels)
    return _as_grey(_scale_to_maximum(pixels) if pixels.max() > 255 else pixels)


def _with_channels_last(pixels: np.ndarray) -> np.ndarray:
    if pixels.size and pixels.ndim == 2:
        return pixels
    if pixels.size and pixels.ndim == 3 and pixels.shape[-1] in (1, 3):
        return pixels
    if pixels.size and pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        return np.moveaxis(pixels, 0, -1)
    raise ValueError(
        "`image` must have the shape (height, width), (height, width, 1 or 3) or (1 or 3, height, width), "
        f"got {tuple(pixels.shape)}."
    )


def _check_not_negative(pixels: np.ndarray) -> None:
    low, high = pixels.min(), pixels.max()
    if low < 0:
        raise ValueError(f"`image` must hold values from 0 up, got values from {low} to {high}.")


def _scale_to_maximum(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(np.float64)
    return pixels * 255 / (pixels.max() or 1)


def _as_grey(pixels: np.ndarray) -> Image.Image:
    """8-bit grey of values in 0..255, shape `(height, width)` or `(height, width, 1 or 3)`."""
    pixels = np.rint(pixels).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("L")


def _from_dicom(content: bytes) -> Image.Image:
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if "PixelData" not in dataset:
        raise ValueError("it has no pixel data.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it must have one frame, got {frames}.")
    _complete_transfer_syntax(dataset)
    photometric = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    if photometric == "PALETTE COLOR":
        return _from_array(apply_color_lut(dataset.pixel_array, dataset))
    if not photometric.startswith("MONOCHROME"):
        return _from_array(dataset.pixel_array)
    grey = _voi_pixels(dataset) if _has_voi(dataset) else _plain_pixels(dataset)
    grey = np.rint(grey)
    return _as_grey(255 - grey if photometric == "MONOCHROME1" else grey)


def _complete_transfer_syntax(dataset: Any) -> None:
    """A file without the header of part 10 does not say its encoding; the reader has found it out."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, is_little_endian = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if is_little_endian else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if is_implicit else explicit


def _has_voi(dataset: Any) -> bool:
    has_window = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    return has_window or bool(dataset.get("VOILUTSequence"))


def _plain_pixels(dataset: Any) -> np.ndarray:
    """The stored values, from 0 (or from their minimum where that is negative) to the maximum of the image."""
    pixels = dataset.pixel_array.astype(np.float64)
    return _scale_to_maximum(pixels - min(pixels.min(), 0))


def _voi_pixels(dataset: Any) -> np.ndarray:
    values = apply_modality_lut(dataset.pixel_array, dataset)
    if dataset.get("VOILUTSequence"):
        return _look_up(values, dataset.VOILUTSequence[0])
    # The window's answers to the darkest and the brightest value there could be are the ends of its output range.
    with np.errstate(over="ignore"):
        low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
    return (apply_windowing(values, dataset) - low) * 255 / (high - low)


def _look_up(values: np.ndarray, voi_lut: Any) -> np.ndarray:
    """VOI LUT over its full output range. pydicom 3.0's own wraps the index of a table whose entries have 8 bits."""
    num_entries, first_value, num_bits = voi_lut.LUTDescriptor
    table = voi_lut.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if len(table) >= 2 * (num_entries or 2**16) else "u1")
    index = np.clip(np.rint(values).astype(np.int64) - first_value, 0, len(table) - 1)
    return np.asarray(table, np.float64)[index] * 255 / (2**num_bits - 1)
