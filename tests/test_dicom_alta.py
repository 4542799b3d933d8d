import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from modeling_alta.radiograph_alta import read_radiograph


FIXTURES = Path(__file__).parent / "fixtures" / "preprocess"
CODE_FOLDER = Path(__file__).parents[1] / "modeling_alta"
# Makes the code files a package without the one that is installed, so that only the reader is imported.
IMPORT_READER = f"""
import sys, types
sys.modules["modeling_alta"] = package = types.ModuleType("modeling_alta")
package.__path__ = [{str(CODE_FOLDER)!r}]
from modeling_alta.radiograph_alta import read_radiograph
"""


def write_dicom(path, pixels, photometric="MONOCHROME2", bits=16, **elements):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def values(image):
    grey = read_radiograph(image)
    assert grey.mode == "L"
    return np.asarray(grey).tolist()


def test_dicom_without_window_is_scaled_by_the_maximum_of_the_image(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 1000, 2000]], np.uint16))
    assert values(path) == [[0, 128, 255]]  # 127.5 rounds to even


def test_monochrome1_is_inverted(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 500, 2000]], np.uint16), "MONOCHROME1")
    assert values(path) == [[255, 191, 0]]


# LINEAR (PS3.3 C.11.2.1.2): (x - 999.5) / 1000 + 0.5 of the range, so 500 gives 0.0005 and 1250 gives 0.7505.
@pytest.mark.parametrize(
    ("photometric", "expected"), [("MONOCHROME2", [0, 0, 191, 255]), ("MONOCHROME1", [255, 255, 64, 0])]
)
def test_window_is_scaled_over_its_output_range(tmp_path, photometric, expected):
    pixels = np.array([[0, 500, 1250, 4000]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, photometric, WindowCenter=1000, WindowWidth=1001)
    assert values(path) == [expected]


def test_window_wider_than_the_pixels_does_not_stretch_them(tmp_path):
    pixels = np.array([[0, 1024, 2048]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=2048, WindowWidth=4096)
    assert values(path) == [[0, 64, 128]]


def test_window_applies_after_the_modality_rescale(tmp_path):
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1000}  # 0, 500, 1000 become -1000, 0, 1000
    window = {"WindowCenter": 0, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"}
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 500, 1000]], np.uint16), **rescale, **window)
    assert values(path) == [[0, 128, 255]]


# The window is [-0.5, 999.5] in steps of 1/999 (LINEAR), so that 500 gives half.
@pytest.mark.parametrize(
    "empty",
    [
        {"RescaleSlope": None},
        {"RescaleIntercept": None, "RescaleSlope": 2},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"VOILUTFunction": ""},
        {"VOILUTFunction": None},
        {"ModalityLUTSequence": []},
        {"PixelPaddingValue": None, "PixelPaddingRangeLimit": None},
    ],
)
def test_an_empty_element_is_as_one_that_is_absent(tmp_path, empty):
    pixels = np.array([[0, 500, 1000]], np.uint16)
    window = {"WindowCenter": 500, "WindowWidth": 1000}
    full = {name: value for name, value in empty.items() if value}
    assert values(write_dicom(tmp_path / "a.dcm", pixels, **window, **empty)) == [[0, 128, 255]]
    assert values(write_dicom(tmp_path / "b.dcm", pixels, **window, **full)) == [[0, 128, 255]]
    assert values(write_dicom(tmp_path / "c.dcm", pixels, **empty)) == [[0, 128, 255]]


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 500, "WindowWidth": 0},
        {"WindowCenter": 500, "WindowWidth": -10},
        {"WindowCenter": 500, "WindowWidth": 0.5},
        {"WindowCenter": 500, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 500, "WindowWidth": 1000, "VOILUTFunction": "GAMMA"},
        {"WindowCenter": None, "WindowWidth": 1000},
        {"WindowCenter": [500, 300], "WindowWidth": [0, 100]},
        {"WindowCenter": [500, 300], "WindowWidth": None},
        {"WindowCenter": [500, 300], "WindowWidth": ["", 100]},
    ],
)
def test_a_window_that_is_none_leaves_the_scale_of_the_image(tmp_path, window):
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 500, 2000]], np.uint16), **window)
    assert values(path) == [[0, 64, 255]]


def test_a_narrow_window_is_one_where_its_function_allows_it(tmp_path):
    window = {"WindowCenter": 500, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"}
    assert values(write_dicom(tmp_path / "a.dcm", np.array([[0, 500, 2000]], np.uint16), **window)) == [[0, 128, 255]]


def test_voi_lut_with_8_bit_entries_covers_all_12_bits(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 8]
    table.LUTData = [value // 16 for value in range(4096)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.array([[0, 256, 1000, 4095]], np.uint16)
    assert values(write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=[table])) == [[0, 16, 62, 255]]


def test_dicom_is_known_by_content_without_suffix(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 100]], np.uint16))
    assert values(path.rename(tmp_path / "radiograph")) == [[0, 255]]
    assert values((tmp_path / "radiograph").read_bytes()) == [[0, 255]]


def test_signed_pixels_and_an_empty_image_are_scaled(tmp_path):
    assert values(write_dicom(tmp_path / "a.dcm", np.array([[-100, 0, 100]], np.int16))) == [[0, 128, 255]]
    assert values(write_dicom(tmp_path / "b.dcm", np.zeros((1, 2), np.uint16))) == [[0, 0]]


def test_multi_frame_dicom_is_an_error_with_its_path(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((3, 2, 2), np.uint16), NumberOfFrames=3)
    with pytest.raises(ValueError, match=r"a\.dcm.*one frame, got 3"):
        read_radiograph(path)


def test_dicom_without_pixel_data_is_an_error_with_its_path(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16))
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(ValueError, match=r"a\.dcm.*no pixel data"):
        read_radiograph(path)


def shipped(name):
    """Path of a file that pydicom ships."""
    return get_testdata_file(name, download=False)


def with_stream(path, stream, syntax):
    """The content of a DICOM whose pixels are replaced by a compressed stream."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_every_lossless_encoding_gives_the_same_pixels(name):
    assert values(shipped(name)) == values(shipped("MR_small.dcm"))


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # JPEG lossless
        ("SC_rgb_gdcm_KY.dcm", 0),  # JPEG 2000
        ("SC_rgb_rle_16bit.dcm", 1),
        ("SC_rgb_rle_32bit.dcm", 1),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 3),  # JPEG baseline, RGB
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 3),  # JPEG baseline, YBR
        ("SC_rgb_jls_lossy_line.dcm", 3),
        ("SC_ybr_full_422_uncompressed.dcm", 3),
    ],
)
def test_every_colour_encoding_gives_the_same_grey(name, tolerance):
    difference = np.abs(np.array(values(shipped(name))) - np.array(values(shipped("SC_rgb_rle.dcm"))))
    assert np.percentile(difference, 95) <= tolerance  # lossy ones ring at the edges of the bars


def test_16_bit_jpeg_lossless_gives_the_same_pixels(tmp_path):
    gdcm = pytest.importorskip("gdcm")
    pixels = np.random.default_rng(0).integers(0, 2**12, (40, 50), dtype=np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=11)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "b.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert values(tmp_path / "b.dcm") == values(path)


def test_palette_colour_is_looked_up():
    dataset = pydicom.dcmread(shipped("examples_palette.dcm"))
    table = np.stack(
        [
            np.frombuffer(dataset[f"{name}PaletteColorLookupTableData"].value, "<u2") / 65535
            for name in ("Red", "Green", "Blue")
        ],
        axis=-1,
    )
    luma = 255 * table[dataset.pixel_array] @ [0.299, 0.587, 0.114]  # ITU-R 601, as PIL
    assert np.abs(values(shipped("examples_palette.dcm")) - luma).max() <= 1


def test_dark_colour_of_16_bits_stays_dark(tmp_path):
    pixels = np.full((4, 4, 3), 0x2000, np.uint16)
    layout = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "Rows": 4, "Columns": 4}
    assert values(write_dicom(tmp_path / "a.dcm", pixels, "RGB", **layout))[0][0] == 32  # 0x2000 / 0xffff of 255


# Padding is black and no part of the maximum: 1000 is white in the image without it.
@pytest.mark.parametrize(
    ("photometric", "elements", "pixels", "expected"),
    [
        ("MONOCHROME2", {"PixelPaddingValue": 4000}, [0, 500, 1000, 4000], [0, 128, 255, 0]),
        ("MONOCHROME1", {"PixelPaddingValue": 4000}, [0, 500, 1000, 4000], [255, 127, 0, 0]),
        ("MONOCHROME1", {"PixelPaddingValue": 0}, [0, 500, 1000, 800], [0, 127, 0, 51]),
        ("MONOCHROME2", {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 3998}, [0, 1000, 3999], [0, 255, 0]),
        (
            "MONOCHROME2",
            {"PixelPaddingValue": 4000, "WindowCenter": 500, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"},
            [0, 500, 1000, 4000],
            [0, 128, 255, 0],
        ),
        ("MONOCHROME2", {"PixelPaddingValue": 7}, [7, 7], [0, 0]),
    ],
)
def test_padding_is_black_and_counts_for_no_maximum(tmp_path, photometric, elements, pixels, expected):
    path = write_dicom(tmp_path / "a.dcm", np.array([pixels], np.uint16), photometric, **elements)
    assert values(path) == [expected]


def test_signed_padding_is_recognised_when_it_was_written_unsigned(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.array([[-2000, 0, 500, 1000]], np.int16))
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(path)
    assert values(path) == [[0, 0, 128, 255]]


def test_bits_above_the_stored_ones_are_no_pixels(tmp_path):
    pixels = np.array([[0, 500, 1000]], np.uint16)
    overlaid = pixels | np.array([[0x8000, 0, 0x1000]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", overlaid, BitsStored=12, HighBit=11)
    assert values(path) == [[0, 128, 255]]


@pytest.mark.parametrize(("dtype", "pixels"), [(np.uint16, [0, 2048, 4095]), (np.int16, [-2048, 0, 2047])])
def test_high_bit_says_where_the_stored_bits_lie(tmp_path, dtype, pixels):
    shifted = np.array([pixels], dtype) << 4 | np.array([[0, 7, 15]], dtype)
    path = write_dicom(tmp_path / "a.dcm", shifted, BitsStored=12, HighBit=15)
    assert values(path) == [[0, 128, 255]]


def test_32_bit_pixels_are_scaled(tmp_path):
    pixels = np.array([[0, 2**30, 2**31]], np.uint32)
    assert values(write_dicom(tmp_path / "a.dcm", pixels, bits=32)) == [[0, 128, 255]]


def test_without_window_a_negative_slope_turns_the_grey_scale(tmp_path):
    pixels = np.array([[0, 500, 1000]], np.uint16)
    assert values(write_dicom(tmp_path / "a.dcm", pixels, RescaleSlope=-1, RescaleIntercept=1000)) == [[255, 128, 0]]
    assert values(write_dicom(tmp_path / "b.dcm", pixels, RescaleSlope=-1, RescaleIntercept=0)) == [[255, 128, 0]]


def test_modality_lut_applies_with_and_without_window(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [3, 0, 16]
    table.LUTData = [0, 900, 1000]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.array([[0, 1, 2, 9]], np.uint16)
    window = {"WindowCenter": 500, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    for elements in ({}, window):
        path = write_dicom(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[table], **elements)
        assert values(path) == [[0, 230, 255, 255]]  # 229.5 rounds to even


def test_enhanced_object_of_one_frame_is_shown_through_its_frame_window(tmp_path):
    window, rescale, group = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 0, 2000, "LINEAR_EXACT"
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -1000
    group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [rescale]
    pixels = np.array([[0, 500, 1000]], np.uint16)
    groups = {"PerFrameFunctionalGroupsSequence": [group], "NumberOfFrames": 1}
    assert values(write_dicom(tmp_path / "a.dcm", pixels, **groups)) == [[0, 128, 255]]


def test_one_pixel_is_read(tmp_path):
    assert values(write_dicom(tmp_path / "a.dcm", np.array([[5]], np.uint16))) == [[255]]


@pytest.mark.parametrize("name", ["empty.dcm", "empty.png"])
def test_zero_byte_file_is_an_error_with_its_path(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name}, which is empty \(0 bytes\)"):
        read_radiograph(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm"],
)
def test_truncated_stream_is_an_error(tmp_path, name):
    path = shipped(name)
    dataset = pydicom.dcmread(path)
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    content = with_stream(path, stream[: len(stream) * 9 // 10], dataset.file_meta.TransferSyntaxUID)
    for damaged in (content, Path(path).read_bytes()[:-200]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"can be decoded, got .*{name}"):
            read_radiograph(tmp_path / name)


def test_truncated_plain_pixels_are_an_error():
    with pytest.raises(ValueError, match=r"MR_truncated\.dcm.*8130 vs 8192 bytes"):
        read_radiograph(shipped("MR_truncated.dcm"))


def test_too_many_rows_and_columns_are_refused_before_decoding(tmp_path):
    path = write_dicom(tmp_path / "bomb.dcm", np.zeros((2, 2), np.uint16), Rows=20000, Columns=20000)
    with pytest.raises(ValueError, match=r"bomb\.dcm.*at most 100,000,000 pixels, got 20000 x 20000"):
        read_radiograph(path)
    small = write_dicom(tmp_path / "a.dcm", np.zeros((2, 3), np.uint16))
    with pytest.raises(ValueError, match=r"at most 5 pixels, got 3 x 2 \(`max_pixels`"):
        read_radiograph(small, max_pixels=5)
    assert read_radiograph(small, max_pixels=6).size == (3, 2)


def jpeg_header(marker):
    """Start of a stream of 20,000 x 20,000 pixels: an APP0 segment, then the frame header of this kind of JPEG."""
    return b"\xff\xd8\xff\xe0\x00\x06JFIF\xff" + struct.pack(">BHBHHB", marker, 11, 8, 20000, 20000, 1) + bytes(40)


SIZE_MARKER = struct.pack(">4sHHII", b"\xff\x4f\xff\x51", 41, 0, 20000, 20000)


@pytest.mark.parametrize(
    ("stream", "syntax"),
    [
        (SIZE_MARKER + bytes(40), JPEG2000Lossless),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\0jp2c" + SIZE_MARKER + bytes(40), JPEG2000Lossless),
        (jpeg_header(0xC3), JPEGLosslessSV1),
        (jpeg_header(0xF7), JPEGLSLossless),
        (jpeg_header(0xC0), JPEGBaseline8Bit),
    ],
)
def test_stream_larger_than_its_header_says_is_refused_before_decoding(tmp_path, stream, syntax):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), bits=8)
    with pytest.raises(ValueError, match="100,000,000 pixels, got 20000 x 20000"):
        read_radiograph(with_stream(path, stream, syntax))


def test_deflated_file_is_read_and_a_bomb_is_refused(tmp_path):
    path = shipped("image_dfl.dcm")
    assert read_radiograph(path).size == (512, 512)
    content = Path(path).read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = content[:start] + deflater.compress(bytes(30_000_000)) + deflater.flush()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian and len(bomb) < 100_000
    with pytest.raises(ValueError, match="inflate to at most .* bytes, got more"):
        read_radiograph(bomb, max_pixels=1_000_000)


def test_missing_decoder_names_the_package_to_install():
    files = {
        "pip install python-gdcm": shipped("SC_rgb_jpeg_gdcm.dcm"),
        "pip install pyjpegls": shipped("MR_small_jpeg_ls_lossless.dcm"),
        "pip install pylibjpeg pylibjpeg-openjpeg": shipped("693_J2KI.dcm"),
        "pip install pylibjpeg pylibjpeg-libjpeg": shipped("JPGExtended.dcm"),
    }
    code = f"""
import sys
sys.modules |= dict.fromkeys(("gdcm", "jpeg_ls", "libjpeg", "openjpeg", "pylibjpeg"))
from PIL import features
features.check_codec = lambda name: False  # a Pillow without JPEG 2000
{IMPORT_READER}
for command, path in {files!r}.items():
    try:
        read_radiograph(path)
    except ImportError as error:
        assert f"`{{command}}`" in str(error) and path in str(error), error
    else:
        raise AssertionError(f"{{path}} was read without its decoder")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_pydicom_a_png_is_read_and_a_dicom_names_the_package():
    code = f"""
import sys
sys.modules["pydicom"] = None
{IMPORT_READER}
assert read_radiograph({str(FIXTURES / "nih.png")!r}).mode == "L"
try:
    read_radiograph({str(FIXTURES / "monochrome1.dcm")!r})
except ImportError as error:
    assert "pip install pydicom" in str(error)
else:
    raise AssertionError("a DICOM was read without pydicom")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_dicom_is_scaled_down_to_the_short_side():
    assert read_radiograph(FIXTURES / "rsna_monochrome2.dcm", short_side=64).size == (64, 64)
