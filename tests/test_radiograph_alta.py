import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from modeling_alta.radiograph_alta import is_system_failure, read_radiograph


FIXTURES = Path(__file__).parent / "fixtures" / "preprocess"


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


def fail_with(number):
    """Stands for a method that reads."""

    def fail(*arguments):
        raise OSError(number, os.strerror(number), "a.png")

    return fail


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_failure_of_the_system_is_no_fault_of_the_file_and_stays_as_it_is(tmp_path, monkeypatch, number):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    lazy = Image.open(tmp_path / "a.png")
    monkeypatch.setattr(Path, "read_bytes", fail_with(number))
    monkeypatch.setattr(lazy, "load", fail_with(number))
    for image in (tmp_path / "a.png", {"path": str(tmp_path / "a.png")}, lazy):
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            read_radiograph(image)
        assert raised.value.errno == number and is_system_failure(raised.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_path_that_cannot_be_read_is_an_error_with_its_path(monkeypatch, number):
    monkeypatch.setattr(Path, "read_bytes", fail_with(number))
    with pytest.raises((ValueError, FileNotFoundError), match=r"`image` must be the path of a .*a\.png") as raised:
        read_radiograph("a.png")
    assert not is_system_failure(raised.value)


def test_failure_of_the_system_is_found_behind_an_error_that_it_caused():
    error = ValueError("a.png cannot be read")
    assert not is_system_failure(error) and not is_system_failure(OSError("image file is truncated"))
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    assert is_system_failure(error)


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


def chest_like_jpeg(width, height, **options):
    """Smooth shapes with a little grain, as a JPEG."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    pixels = 200 * np.exp(-3 * (x - 0.2) ** 2) * (1 - 0.4 * y) / 1.4 + 20 * np.sin(30 * y)
    pixels += np.random.default_rng(0).normal(0, 4, pixels.shape)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return encoded(picture.convert(options.pop("mode", "L")), format="JPEG", quality=95, **options)


def test_16_bit_tiff_of_big_endian_is_scaled():
    picture = Image.new("I;16B", (3, 1))
    picture.putdata([0, 1000, 4000])
    assert values(encoded(picture, format="TIFF")) == [[0, 64, 255]]


@pytest.mark.parametrize(("bits", "dtype"), [(8, "<u1"), (16, "<u2")])
def test_tiff_with_0_for_white_is_inverted(bits, dtype):
    pixels = np.array([[0, 51, 255]], dtype) * (257 if bits == 16 else 1)
    header = struct.pack("<2sHIH", b"II", 42, 8, 8)
    tags = [(256, 3, 3), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, 0), (273, 4, 110), (277, 3, 1)]
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in [*tags, (279, 4, bits // 8 * 3)]
    )
    content = (header + entries + bytes(4)).ljust(110, b"\0") + pixels.astype(dtype).tobytes()
    assert values(content) == [[255, 204, 0]]


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_files_become_grey(file_format):
    colours = np.zeros((8, 16, 3), np.uint8)
    colours[:, 8:] = 180
    content = encoded(Image.fromarray(colours).convert("CMYK"), format=file_format)
    assert np.abs(np.array(values(content)) - colours[..., 0]).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_palette_files_become_grey(file_format):
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 255, 180, 180, 180])
    picture.putpixel((1, 0), 1)
    assert values(encoded(picture, format=file_format)) == [[29, 180]]  # 0.114 of 255


@pytest.mark.parametrize("transparency", [{"transparency": 1}, {"transparency": b"\xff\x00"}])
def test_transparent_palette_entry_becomes_black(transparency):
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 200, 200, 90, 90, 90])
    picture.putpixel((1, 0), 1)
    assert values(encoded(picture, format="PNG", **transparency)) == [[200, 0]]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(file_format, orientation):
    corner = Image.new("L", (32, 16), 20)
    corner.paste(220, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {274: orientation}} if file_format == "TIFF" else {"exif": exif}
    content = encoded(corner, format=file_format, **options)
    pixels = np.array(values(content))
    rows, columns = np.nonzero(pixels > 120)
    # Where row 0 and column 0 of the stored pixels are shown, by the EXIF standard.
    vertical, horizontal = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    assert pixels.shape == ((16, 32) if orientation < 5 else (32, 16))
    assert (rows.min() == 0) == (vertical == "t") and (columns.min() == 0) == (horizontal == "l")
    assert len(rows) == 16 * 8
    reduced = read_radiograph(content, short_side=8)
    assert np.abs(np.asarray(reduced) - pixels.reshape(pixels.shape[0] // 2, 2, -1, 2).mean((1, 3))).mean() < 8


@pytest.mark.parametrize(
    ("width", "height", "options"),
    [
        (1500, 1250, {}),
        (1255, 1502, {"mode": "RGB"}),
        (1255, 1502, {"mode": "CMYK"}),
        (2600, 2100, {"progressive": True}),
        (600, 513, {}),
    ],
)
def test_reduced_jpeg_is_the_full_one_within_2_grey_levels(width, height, options):
    content = chest_like_jpeg(width, height, **options)
    full = read_radiograph(content)
    assert full.size == (width, height)
    full = full.resize([round(side * 512 / min(full.size)) for side in full.size], Image.Resampling.BICUBIC)
    reduced = read_radiograph(content, short_side=512)
    assert reduced.mode == "L" and reduced.size == full.size and min(reduced.size) == 512
    difference = np.abs(np.asarray(full, float) - np.asarray(reduced, float))
    assert difference.mean() < 1 and difference.max() < 16


# These waves are too fine for the result. The decoder's average alone would leave 0.43 of them as moire (6 of 2048).
@pytest.mark.parametrize("side", [2048, 2500])
@pytest.mark.parametrize("period", [2, 3, 4, 5, 6])
def test_reduced_jpeg_has_little_moire(side, period):
    wave = (100 + 90 * np.sin(2 * np.pi * np.arange(side) / period)).round().astype(np.uint8)
    content = encoded(Image.fromarray(np.tile(wave, (256, 1))), format="JPEG", quality=95)
    reduced = np.asarray(read_radiograph(content, short_side=round(256 * 512 / side)), float)[:, 8:-8]
    assert abs(reduced.mean() - 100) < 1 and reduced.std() * 2**0.5 < 0.33 * 90


def test_short_side_scales_every_input_down_and_none_up(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), format="PNG")
    (tmp_path / "a.png").write_bytes(content)
    for image in (pixels, torch.from_numpy(pixels), Image.fromarray(pixels), content, tmp_path / "a.png"):
        assert read_radiograph(image, short_side=30).size == (45, 30)
        assert np.array_equal(read_radiograph(image, short_side=60), pixels)
    with pytest.raises(ValueError, match="`short_side` must be at least 1, got 0"):
        read_radiograph(pixels, short_side=0)


def png_of(width, height, data=b""):
    """A PNG whose header announces a size, whatever follows."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Pillow refuses the first two itself; the last one it would decode.
@pytest.mark.parametrize(("width", "height"), [(20000, 20000), (400000000, 1), (12000, 10000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_of_too_many_pixels_is_refused_with_its_path(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_of(width, height))
    with pytest.raises(ValueError, match=rf"bomb\.png.*({width} x {height}|{width * height}) ?pixels|got {width} x"):
        read_radiograph(tmp_path / "bomb.png")


def test_size_limit_can_be_set_and_holds_for_jpeg_and_unloaded_pictures():
    for content in (png_of(20, 10, zlib.compress(bytes(21 * 10))), encoded(Image.new("L", (20, 10)), format="JPEG")):
        assert read_radiograph(content, max_pixels=200).size == (20, 10)
        for image in (content, Image.open(io.BytesIO(content))):
            with pytest.raises(ValueError, match=r"at most 199 pixels, got 20 x 10 \(`max_pixels` sets the limit\)"):
                read_radiograph(image, short_side=4, max_pixels=199)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_truncated_file_is_an_error_at_a_short_side_too(file_format):
    content = encoded(Image.open(io.BytesIO(chest_like_jpeg(400, 300))), format=file_format)
    for length in (len(content) // 20, len(content) // 2, len(content) * 9 // 10):
        with pytest.raises(ValueError, match="encoded bytes"):
            read_radiograph(content[:length], short_side=64)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_one_pixel_is_read(file_format):
    assert values(encoded(Image.new("L", (1, 1), 9), format=file_format)) == [[9]]


def test_wide_integers_are_scaled_whatever_their_dtype():
    for dtype in (np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        assert values(np.array([[0, 10000, 20000]], dtype)) == [[0, 128, 255]]
    assert values(np.array([[0, 2**30, 2**31]], np.uint32)) == [[0, 128, 255]]
