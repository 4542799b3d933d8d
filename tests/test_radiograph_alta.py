import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from safetensors.numpy import load_file

from modeling_alta.radiograph_alta import read_radiograph


FIXTURES = Path(__file__).parent / "fixtures" / "preprocess"
READER_FILE = Path(__file__).parents[1] / "modeling_alta" / "radiograph_alta.py"


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


def preprocess_224(grey):
    scale = 256 / min(grey.size)
    grey = grey.resize([int(side * scale) for side in grey.size], Image.Resampling.BICUBIC)
    left, top = round((grey.width - 224) / 2), round((grey.height - 224) / 2)
    pixels = np.asarray(grey.crop((left, top, left + 224, top + 224)), np.float64)
    return (pixels / 255 - 0.4785) / 0.2834


def encoded(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def values(image):
    grey = read_radiograph(image)
    assert grey.mode == "L"
    return np.asarray(grey).tolist()


@pytest.mark.parametrize("name", ["covid_cxr.jpg", "nih.png", "rsna_monochrome2.dcm", "monochrome1.dcm"])
def test_fixture_gives_the_published_pixels(name):
    expected = load_file(FIXTURES / "expected.safetensors")[name].reshape(224, 224)
    difference = np.abs(preprocess_224(read_radiograph(FIXTURES / name)) - expected)
    assert difference.max() < 0.0139 and difference.mean() < 0.0015


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


@pytest.mark.parametrize("name", ["covid_cxr.jpg", "nih.png", "rsna_monochrome2.dcm"])
def test_truncated_file_is_an_error_with_its_path(tmp_path, name):
    content = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name):
        read_radiograph(str(path))


def test_file_that_is_no_image_is_an_error_with_its_path(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("no radiograph")
    with pytest.raises(ValueError, match=r"DICOM, PNG, JPEG or TIFF, got .*notes\.jpg"):
        read_radiograph(path)
    with pytest.raises(ValueError, match="readable file"):
        read_radiograph(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_radiograph(tmp_path / "absent.png")


def test_path_bytes_and_datasets_dict_give_the_same_pixels():
    path = FIXTURES / "nih.png"
    expected = values(path)
    assert values(str(path)) == values(path.read_bytes()) == expected
    assert values({"bytes": path.read_bytes(), "path": None}) == values({"bytes": None, "path": str(path)}) == expected
    with pytest.raises(ValueError, match="`bytes` or `path`"):
        read_radiograph({"bytes": None, "path": None})


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_file_is_scaled_not_clipped(suffix):
    content = encoded(Image.fromarray(np.array([[0, 1000, 4000]], np.uint16)), format=suffix)
    assert values(content) == [[0, 64, 255]]


@pytest.mark.parametrize(
    ("dtype", "pixels", "expected"),
    [
        (np.int32, [0, 500, 1000], [0, 128, 255]),
        (np.float32, [0, 0.5, 1], [0, 128, 255]),
        (np.float32, [0, 9], [0, 9]),
    ],
)
def test_wide_pil_modes_are_scaled_not_clipped(dtype, pixels, expected):
    assert values(Image.fromarray(np.array([pixels], dtype))) == [expected]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_pil_mode_becomes_grey(mode):
    picture = Image.new("RGB", (2, 1), (255, 255, 255))
    assert values(picture.convert(mode)) == [[255, 255]]


def test_transparent_pixels_become_black():
    picture = Image.fromarray(np.array([[[200, 200, 200, 255], [200, 200, 200, 0]]], np.uint8))
    assert values(picture) == [[200, 0]]


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    content = encoded(Image.new("L", (20, 10)), format="JPEG", exif=exif)
    assert read_radiograph(content).size == (10, 20)


def test_result_is_a_copy():
    picture = Image.new("L", (2, 2))
    read_radiograph(picture).putpixel((0, 0), 9)
    assert picture.getpixel((0, 0)) == 0


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (1, 4, 5), (3, 4, 5)])
def test_arrays_and_tensors_of_every_layout_are_read(shape):
    pixels = np.full(shape, 7, np.uint8)
    for image in (pixels, torch.from_numpy(pixels)):
        assert read_radiograph(image).size == (5, 4) and values(image)[0][0] == 7


def test_integers_above_8_bits_are_divided_by_the_maximum():
    assert values(np.array([[0, 1000, 4000]])) == [[0, 64, 255]]
    assert values(np.array([[0, 100, 255]])) == [[0, 100, 255]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_fractions_of_the_grey_range(dtype):
    assert values(torch.tensor([[0, 0.5, 1]], dtype=dtype)) == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0.0, 1.5]]), r"`image` of floats must .*0\.\.1, got values from 0\.0 to 1\.5"),
        (np.array([[-0.1, 1.0]]), r"0\.\.1, got values from -0\.1"),
        (np.array([[0.0, np.nan]]), "finite"),
        (np.array([[0.0, np.inf]]), "finite"),
        (np.array([[-1, 5]]), "from 0 up, got values from -1 to 5"),
        (np.zeros((2, 4, 5)), r"got \(2, 4, 5\)"),
        (np.zeros((0, 5)), r"got \(0, 5\)"),
        (np.array([[True]]), "integers or floats, got the dtype bool"),
    ],
)
def test_pixels_out_of_shape_or_range_are_an_error(pixels, message):
    with pytest.raises(ValueError, match=message):
        read_radiograph(pixels)


@pytest.mark.parametrize("image", [None, 3, [[0, 1]]])
def test_other_types_are_an_error(image):
    with pytest.raises(TypeError, match=f"got {type(image).__name__}"):
        read_radiograph(image)


def test_without_pydicom_a_png_is_read_and_a_dicom_names_the_package():
    code = f"""
import sys, types
sys.modules["pydicom"] = None
sys.modules["modeling_alta"] = package = types.ModuleType("modeling_alta")
package.__path__ = [{str(READER_FILE.parent)!r}]
from modeling_alta.radiograph_alta import read_radiograph
assert read_radiograph({str(FIXTURES / "nih.png")!r}).mode == "L"
try:
    read_radiograph({str(FIXTURES / "monochrome1.dcm")!r})
except ImportError as error:
    assert "pip install pydicom" in str(error)
else:
    raise AssertionError("a DICOM was read without pydicom")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
