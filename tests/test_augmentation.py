from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_alta.configuration_alta import VIEW_NAMES
from modeling_alta.image_processing_alta import AltaImageProcessor
from processing.batches.augmentation import (
    AUGMENTATION_RANGES,
    AugmentationDraw,
    StudyTransform,
    augment_radiograph,
    draw_augmentation,
    resize_to_encoder,
)


REFERENCE = Path(__file__).parent / "fixtures" / "reference_tiny"
NO_CHANGE = AugmentationDraw(0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0)


def make_image(seed=0, size=(60, 50)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_resize_to_encoder_equals_the_published_one():
    target = load_file(REFERENCE / "batch.safetensors")["current_frontal_448"].float()
    expected = load_file(REFERENCE / "expected.safetensors")["frontal_224_row0"]
    resized = resize_to_encoder(target, 224)
    assert resized.shape == (4, 1, 224, 224)
    torch.testing.assert_close(resized[:, 0, 0], expected, rtol=0, atol=1e-5)


def test_draws_fill_their_published_ranges():
    generator = make_generator()
    draws = torch.tensor([astuple(draw_augmentation(generator)) for _ in range(500)])
    published = [(-20, 20), (-0.1, 0.1), (-0.1, 0.1), (0.95, 1.05), (-10, 10), (0.8, 1.2), (0.8, 1.2)]
    assert list(AUGMENTATION_RANGES.values()) == published
    low, high = torch.tensor(published).unbind(-1)
    assert (draws >= low).all() and (draws <= high).all()
    assert (draws.min(0).values < low + 0.05 * (high - low)).all()
    assert (draws.max(0).values > high - 0.05 * (high - low)).all()


def test_a_draw_that_changes_nothing_gives_the_image_back():
    np.testing.assert_array_equal(np.asarray(augment_radiograph(make_image(), NO_CHANGE)), np.asarray(make_image()))


def test_translations_are_shares_of_the_image():
    white = Image.new("L", (40, 20), 200)
    draw = AugmentationDraw(0.0, 0.1, -0.1, 1.0, 0.0, 0.5, 1.0)
    expected = np.zeros((20, 40), np.uint8)
    expected[:18, 4:] = 100  # 4 columns to the right, 2 rows up, half as bright
    np.testing.assert_array_equal(np.asarray(augment_radiograph(white, draw)), expected)


def test_contrast_spreads_the_grey_levels_about_their_mean():
    image = Image.fromarray(np.array([[80, 120]], np.uint8))
    draw = AugmentationDraw(0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.2)
    assert np.asarray(augment_radiograph(image, draw)).tolist() == [[76, 124]]


def test_a_view_and_its_prior_get_the_same_draw_and_the_other_view_another():
    study = {name: make_image() for name in VIEW_NAMES}
    pixel_values = StudyTransform(32, 32)(study, make_generator())["pixel_values"]
    torch.testing.assert_close(pixel_values[0], pixel_values[2])
    torch.testing.assert_close(pixel_values[1], pixel_values[3])
    assert (pixel_values[0] - pixel_values[1]).abs().max() > 0.5


def test_the_encoder_sees_the_augmented_target():
    sample = StudyTransform(32, 64)({"current_frontal": make_image()}, make_generator())
    target = sample["target_pixel_values"]
    assert target.shape == (1, 64, 64) and sample["pixel_values"].shape == (4, 1, 32, 32)
    torch.testing.assert_close(sample["pixel_values"][0], resize_to_encoder(target, 32))
    plain = StudyTransform(32, 64, do_augment=False)({"current_frontal": make_image()})["target_pixel_values"]
    assert (target - plain).abs().max() > 0.5


def test_the_draw_depends_on_the_generator_alone():
    transform, study = StudyTransform(32, 64), {"current_frontal": make_image(), "prior_lateral": make_image(1)}
    first, again, other = (transform(study, make_generator(seed))["pixel_values"] for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first[0] - other[0]).abs().max() > 0.5 and (first[3] - other[3]).abs().max() > 0.5


def test_without_augmentation_pixels_are_those_of_the_image_processor():
    study = {"current_frontal": make_image(0), "current_lateral": make_image(1, (50, 67)), "prior_frontal": None}
    sample = StudyTransform(32, 64, do_augment=False)(study)
    inputs = AltaImageProcessor.from_image_size(32)(study, return_tensors="pt")
    torch.testing.assert_close(sample["pixel_values"].expand(-1, 3, -1, -1), inputs["pixel_values"][0])
    torch.testing.assert_close(sample["view_mask"], inputs["view_mask"][0])
    target = AltaImageProcessor.from_image_size(64)(study["current_frontal"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(sample["target_pixel_values"].expand(3, -1, -1), target)


def test_a_study_without_current_frontal_has_a_target_of_zeros():
    sample = StudyTransform(32, 64)({"current_lateral": make_image(), "prior_frontal": make_image()}, make_generator())
    assert sample["view_mask"].tolist() == [False, True, True, False]
    assert sample["target_pixel_values"].eq(0).all() and sample["pixel_values"][[0, 3]].eq(0).all()
    assert sample["pixel_values"][[1, 2]].ne(0).any(-1).any(-1).all()


def test_augmentation_without_a_generator_is_an_error():
    with pytest.raises(ValueError, match="`generator` must be a `torch.Generator`"):
        StudyTransform(32, 64)({"current_frontal": make_image()})
