from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torchvision.transforms.v2 import functional as tvF
from transformers import AutoImageProcessor

import modeling_alta  # noqa: F401 - registers the classes
from modeling_alta.configuration_alta import VIEW_NAMES
from modeling_alta.image_processing_alta import AltaImageProcessor


PREPROCESS = Path(__file__).parent / "fixtures" / "preprocess"


def make_image(seed=0, size=(40, 48)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def make_processor(image_size=32):
    return AltaImageProcessor.from_image_size(image_size)


@pytest.mark.parametrize("name", ["covid_cxr.jpg", "nih.png", "rsna_monochrome2.dcm", "monochrome1.dcm"])
def test_pixels_equal_those_of_the_published_transform(name):
    expected = load_file(PREPROCESS / "expected.safetensors")[name]
    pixel_values = AltaImageProcessor()(PREPROCESS / name, return_tensors="np")["pixel_values"]
    assert pixel_values.shape == (1, 3, 224, 224) and pixel_values.dtype == np.float32
    difference = np.abs(pixel_values[0] - expected)
    assert difference.max() < 0.0139 and difference.mean() < 0.0015


@pytest.mark.parametrize("margin", [0, 1, 2, 3, 5])
def test_crop_rounds_as_torchvision_does(margin):
    image = make_image(size=(32 + margin, 32 + margin))
    processor = AltaImageProcessor(
        do_resize=False, do_rescale=False, do_normalize=False, crop_size={"height": 32, "width": 32}
    )
    cropped = np.asarray(tvF.center_crop(image, [32, 32]))
    np.testing.assert_array_equal(processor(image)["pixel_values"][0][0], cropped)


def test_images_alone_give_pixel_values_of_four_dimensions_and_no_mask():
    inputs = make_processor()([make_image(0), make_image(1)], return_tensors="pt")
    assert set(inputs) == {"pixel_values"}
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert inputs.to(torch.bfloat16)["pixel_values"].dtype == torch.bfloat16


def test_a_study_gives_its_views_in_order_and_a_mask():
    study = {"prior_lateral": make_image(1), "current_frontal": make_image(0), "prior_frontal": None}
    inputs = make_processor()(study, return_tensors="pt")
    alone = make_processor()([make_image(0), make_image(1)], return_tensors="pt")["pixel_values"]
    assert inputs["view_mask"].dtype == torch.bool
    assert inputs["view_mask"].tolist() == [[True, False, False, True]]
    torch.testing.assert_close(inputs["pixel_values"][0, [0, 3]], alone)
    assert inputs["pixel_values"][0, 1:3].eq(0).all()


def test_an_image_beside_a_study_is_a_current_frontal():
    inputs = make_processor()([{"current_lateral": make_image(0)}, make_image(1)], return_tensors="pt")
    assert inputs["view_mask"].tolist() == [[False, True, False, False], [True, False, False, False]]
    alone = make_processor()(make_image(1), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs["pixel_values"][1, :1], alone)


@pytest.mark.parametrize(("return_tensors", "kind"), [(None, list), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_every_return_type_holds_the_same_pixels(return_tensors, kind):
    inputs = make_processor()([{"current_frontal": make_image()}], return_tensors=return_tensors)
    assert isinstance(inputs["pixel_values"], kind) and isinstance(inputs["view_mask"], kind)
    expected = make_processor()(make_image())["pixel_values"][0]
    np.testing.assert_array_equal(np.asarray(inputs["pixel_values"][0])[0], expected)


def test_every_kind_of_image_gives_the_same_pixels(tmp_path):
    image = make_image()
    image.save(tmp_path / "image.png")
    content, array = (tmp_path / "image.png").read_bytes(), np.asarray(image)
    kinds = [
        image,
        image.convert("RGB"),
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        content,
        {"bytes": content, "path": None},
        array,
        torch.tensor(array)[None],
        array.astype(np.float64) / 255,
    ]
    pixel_values = make_processor()(kinds, return_tensors="np")["pixel_values"]
    assert pixel_values.shape == (len(kinds), 3, 32, 32)
    np.testing.assert_array_equal(pixel_values, np.broadcast_to(pixel_values[:1], pixel_values.shape))


def test_any_sequence_is_a_list_of_images():
    column = datasets.Dataset.from_dict({"image": [make_image(0), make_image(1)]})["image"]
    expected = make_processor()([make_image(0), make_image(1)], return_tensors="pt")["pixel_values"]
    for images in (column, tuple(column)):
        torch.testing.assert_close(make_processor()(images, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("to_batch", [np.stack, lambda arrays: torch.tensor(np.stack(arrays))])
def test_a_batch_array_is_a_list_of_images(to_batch):
    arrays = [np.asarray(make_image(seed))[None] for seed in range(2)]
    expected = make_processor()(arrays, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(make_processor()(to_batch(arrays), return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        ([], ValueError, "`images` must hold at least one study or image, got an empty list"),
        ({}, ValueError, r"`images`\[0\] must have a `current_frontal` or a `current_lateral`, got \[\]"),
        ({"current_frontal": None, "prior_frontal": make_image()}, ValueError, r"got \['prior_frontal'\]"),
        ([make_image(), {"front": make_image()}], ValueError, r"`images`\[1\].*current_frontal.*got \['front'\]"),
        ([[make_image()]], TypeError, r"`images`\[0\] must be a study .* got list"),
        (None, TypeError, r"`images`\[0\] must be a study .* got NoneType"),
        ({"current_frontal": 3}, TypeError, r"`images`\[0\]\['current_frontal'\].*got int"),
        (np.full((8, 8), 2.0), ValueError, r"`images`\[0\] cannot be used.*0\.\.1.*2\.0"),
        (np.zeros((8, 8, 7), np.uint8), ValueError, r"\(8, 8, 7\)"),
        ("no such file.png", FileNotFoundError, "no such file.png"),
    ],
)
def test_bad_images_raise_an_error_that_says_what_came(images, kind, message):
    with pytest.raises(kind, match=message):
        make_processor()(images)


def test_a_crop_larger_than_the_image_is_an_error():
    with pytest.raises(ValueError, match="`crop_size` must fit .* 37 x 44 pixels, got 64 x 64"):
        make_processor()(make_image(), crop_size={"height": 64, "width": 64})


def test_views_of_different_sizes_without_a_crop_are_an_error():
    study = {name: make_image(size=(40, 40 + i)) for i, name in enumerate(VIEW_NAMES)}
    with pytest.raises(ValueError, match="views of one size"):
        make_processor()(study, do_center_crop=False)


def test_saved_processor_loads_with_the_same_settings(tmp_path):
    processor = AltaImageProcessor.from_image_size(32, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    for loaded in (AltaImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is AltaImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        np.testing.assert_array_equal(loaded(make_image())["pixel_values"], processor(make_image())["pixel_values"])
