"""A DICOM file to the 8-bit pixels that it shows: modality and VOI transforms, padding, polarity, colour.

pydicom decodes. What it cannot decode by itself: JPEG lossless (python-gdcm), JPEG-LS (pyjpegls), JPEG 2000 (pylibjpeg
and pylibjpeg-openjpeg). Overlays are not drawn.
"""

import io
import struct
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np

from .pixels_alta import check_num_pixels, map_values


try:  # only DICOM needs it
    import pydicom
    from pydicom.encaps import get_frame
    from pydicom.pixels import apply_color_lut, apply_rescale, apply_windowing, pixel_array
except ImportError:
    pydicom = None

__all__ = ["read_dicom"]

DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_LOSSLESS_PACKAGES = ("python-gdcm",)
JPEG_LS_PACKAGES = ("pyjpegls",)
JPEG_2000_PACKAGES = ("pylibjpeg", "pylibjpeg-openjpeg")
# By transfer syntax; pydicom and Pillow decode the others.
DECODER_PACKAGES = {
    "1.2.840.10008.1.2.4.51": ("pylibjpeg", "pylibjpeg-libjpeg"),  # 12-bit JPEG; under the GPL, so on no list of ours
    "1.2.840.10008.1.2.4.57": JPEG_LOSSLESS_PACKAGES,
    "1.2.840.10008.1.2.4.70": JPEG_LOSSLESS_PACKAGES,
    "1.2.840.10008.1.2.4.80": JPEG_LS_PACKAGES,
    "1.2.840.10008.1.2.4.81": JPEG_LS_PACKAGES,
    "1.2.840.10008.1.2.4.90": JPEG_2000_PACKAGES,
    "1.2.840.10008.1.2.4.91": JPEG_2000_PACKAGES,
    "1.2.840.10008.1.2.4.201": JPEG_2000_PACKAGES,
    "1.2.840.10008.1.2.4.202": JPEG_2000_PACKAGES,
    "1.2.840.10008.1.2.4.203": JPEG_2000_PACKAGES,
}
MODULES = {
    "pyjpegls": "jpeg_ls",
    "pylibjpeg": "pylibjpeg",
    "pylibjpeg-libjpeg": "libjpeg",
    "pylibjpeg-openjpeg": "openjpeg",
    "python-gdcm": "gdcm",
}
MAY_BE_EMPTY = ("ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "VOILUTFunction")
LEAST_WIDTHS = {"LINEAR": 1, "LINEAR_EXACT": 0, "SIGMOID": 0}  # of a window; 0 is none, PS3.3 section C.11.2.1
BYTES_PER_PIXEL = 6  # colour of 16 bits, the most that is read
HEADER_BYTES = 2**20


def read_dicom(content: bytes, max_pixels: int) -> np.ndarray:
    """
    Read the pixels of a DICOM as a viewer shows them.

    With a VOI LUT or window: modality transform, then the VOI over its output range. Without one:
    8-bit = round(stored pixel * 255 / maximum of the image), the modality transform only where it changes more than
    slope and offset. MONOCHROME1 is 255 minus that. Padding (PixelPaddingValue to PixelPaddingRangeLimit) is black and
    counts for no maximum. An empty element is as one that is absent, and a window whose width or function is none of
    the standard is no window. Colour is scaled over its full range, not by its maximum.

    Args:
        content (`bytes`): the file.
        max_pixels (`int`): the most pixels that Rows x Columns, or the compressed stream, may announce.

    Returns:
        `np.ndarray` of `uint8` and of shape `(height, width)`, or `(height, width, 3)` for colour.

    Raises:
        `ValueError`: no pixel data, several frames, more than `max_pixels`; any other error on damaged content.
        `ImportError`: pydicom, or the package that decodes this transfer syntax, is not installed.
    """
    if pydicom is None:
        raise ImportError("a DICOM needs pydicom: `pip install pydicom`.")
    _check_deflated_size(content, max_pixels)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if "PixelData" not in dataset:
        raise ValueError("it has no pixel data.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it must have one frame, got {frames}.")
    _complete_transfer_syntax(dataset)
    _check_size(dataset, max_pixels)
    _lift_functional_groups(dataset)
    _drop_empty_elements(dataset)
    pixels = _stored_pixels(dataset)
    if dataset.get("PhotometricInterpretation", "MONOCHROME2").startswith("MONOCHROME"):
        return map_values(pixels, lambda values: _shown(values, dataset))
    return _colour_pixels(pixels, dataset)


def _check_deflated_size(content: bytes, max_pixels: int) -> None:
    """pydicom inflates the whole file before the first element can be read."""
    if DEFLATED.encode() not in content[:HEADER_BYTES]:
        return
    max_bytes = BYTES_PER_PIXEL * max_pixels + HEADER_BYTES
    start = 144 + int.from_bytes(content[140:144], "little")  # File Meta Information Group Length, PS3.10 section 7.1
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(content[start:], max_bytes)
    if inflater.unconsumed_tail:
        raise ValueError(
            f"it must inflate to at most {max_bytes:,} bytes, got more (`max_pixels` sets the limit, {max_pixels:,})."
        )


def _complete_transfer_syntax(dataset: Any) -> None:
    """A file without the header of part 10 does not say its encoding; the reader has found it out."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, is_little_endian = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if is_little_endian else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if is_implicit else explicit


def _check_size(dataset: Any, max_pixels: int) -> None:
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise ValueError(f"it must have Rows and Columns, got {rows} and {columns}.")
    check_num_pixels(columns, rows, max_pixels)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        check_num_pixels(*_stream_size(get_frame(dataset.PixelData, 0, number_of_frames=1)), max_pixels)


def _stream_size(stream: bytes) -> tuple[int, int]:
    """Width and height in a JPEG, JPEG-LS or JPEG 2000 stream, by which its decoder allocates; (0, 0) in another."""
    start = stream.find(b"jp2c") + 4 if stream[4:8] == b"jP  " else 0  # JP2 boxes, or the bare stream
    if stream[start : start + 4] == b"\xff\x4f\xff\x51":  # SOC, SIZ
        return struct.unpack_from(">II", stream, start + 8)
    position = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while position + 9 <= len(stream):
        marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4], "big")
        if marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame headers
            return struct.unpack_from(">HH", stream, position + 5)[::-1]
        position += 2 + length
    return 0, 0


def _lift_functional_groups(dataset: Any) -> None:
    """An enhanced object keeps rescale and window in its functional groups; of one frame they hold for the object."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(groups) or []:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in group.get(name) or []:
                    dataset.update(item)


def _drop_empty_elements(dataset: Any) -> None:
    """pydicom takes an element that is there for one that has a value."""
    for name in MAY_BE_EMPTY:
        if name in dataset and dataset[name].is_empty:
            del dataset[name]


def _stored_pixels(dataset: Any) -> np.ndarray:
    bits_stored = dataset.BitsStored
    shift = dataset.get("HighBit", bits_stored - 1) + 1 - bits_stored
    if shift <= 0 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return _decode(dataset)
    # pydicom takes the lowest bits for the stored ones, whatever High Bit says.
    dataset.BitsStored = bits_stored + shift
    pixels = _decode(dataset) >> shift
    dataset.BitsStored = bits_stored
    return pixels


def _decode(dataset: Any) -> np.ndarray:
    """Stored values of shape `(height, width)`, or RGB of shape `(height, width, 3)`, YBR converted."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        return pixel_array(dataset)
    except Exception as error:
        packages = DECODER_PACKAGES.get(syntax, ())
        if all(find_spec(MODULES[package]) for package in packages):
            raise
        names = " ".join(packages)
        raise ImportError(f"it is encoded as {syntax.name}, which needs `pip install {names}`.") from error


def _shown(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Grey levels of the stored values that occur in the image."""
    is_padding = _is_padding(values, dataset)
    grey = np.zeros(len(values), np.uint8)
    shown = values[~is_padding]
    if shown.size:
        shown = _voi_values(shown, dataset) if _has_voi(dataset) else _plain_values(shown, dataset)
        shown = np.rint(np.clip(shown, 0, 255))  # before the inversion, as published
        grey[~is_padding] = 255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown
    return grey


def _is_padding(values: np.ndarray, dataset: Any) -> np.ndarray:
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(len(values), bool)
    last = dataset.get("PixelPaddingRangeLimit")
    dtype = np.int16 if dataset.PixelRepresentation else np.uint16  # some write -2000 as 63536
    low, high = sorted(int(np.int64(value).astype(dtype)) for value in (first, first if last is None else last))
    return (values >= low) & (values <= high)


def _has_voi(dataset: Any) -> bool:
    return _has_window(dataset) or bool(dataset.get("VOILUTSequence"))


def _has_window(dataset: Any) -> bool:
    """Whether the first window, the one that is applied, is valid."""
    center, width = (_first_value(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    least = LEAST_WIDTHS.get(str(dataset.get("VOILUTFunction", "LINEAR")).upper())
    return None not in (center, width, least) and width > 0 and width >= least


def _first_value(value: Any) -> Any:
    value = value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value
    return None if value in ("", []) else value


def _plain_values(values: np.ndarray, dataset: Any) -> np.ndarray:
    """From 0 (or from the minimum where that is negative) to the maximum of the image."""
    if dataset.get("ModalityLUTSequence") or (dataset.get("RescaleSlope") or 1) < 0:
        values = _modality_values(values, dataset)
    values = values.astype(np.float64) - min(values.min(), 0)
    return values * 255 / (values.max() or 1)


def _modality_values(values: np.ndarray, dataset: Any) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(values, dataset.ModalityLUTSequence[0])
    return apply_rescale(values, dataset)


def _voi_values(values: np.ndarray, dataset: Any) -> np.ndarray:
    values = _modality_values(values, dataset)
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        return _look_up(values, table) * 255 / (2 ** table.LUTDescriptor[2] - 1)
    # The window's answers to the darkest and the brightest value there could be are the ends of its output range.
    with np.errstate(over="ignore"):
        low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
        return (apply_windowing(values, dataset) - low) * 255 / (high - low)


def _look_up(values: np.ndarray, item: Any) -> np.ndarray:
    """Entries of a modality or VOI LUT. pydicom 3.0's own wraps the index of a table whose entries have 8 bits."""
    num_entries, first_value, _ = item.LUTDescriptor
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if len(table) >= 2 * (num_entries or 2**16) else "u1")
    index = np.clip(np.rint(values).astype(np.int64) - first_value, 0, len(table) - 1)
    return np.asarray(table, np.float64)[index]


def _colour_pixels(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    maximum = 2**dataset.BitsStored - 1
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]
        maximum = np.iinfo(pixels.dtype).max
    if pixels.shape[2:] != (3,):
        raise ValueError(f"its colours must have 3 samples a pixel, got the shape {pixels.shape}.")
    return pixels if maximum == 255 else np.rint(pixels * (255 / maximum)).clip(0, 255).astype(np.uint8)
