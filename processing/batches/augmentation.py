"""Training transform of one study: the published geometry, and one random draw per view and its prior."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from modeling_alta.configuration_alta import VIEW_NAMES
from modeling_alta.image_processing_alta import IMAGE_MEAN, IMAGE_STD, shortest_edge_for
from modeling_alta.radiograph_alta import read_radiograph


# Lowest and highest value of each field of a draw (paper, implementation details).
AUGMENTATION_RANGES = {
    "angle": (-20.0, 20.0),
    "translate_x": (-0.1, 0.1),
    "translate_y": (-0.1, 0.1),
    "scale": (0.95, 1.05),
    "shear": (-10.0, 10.0),
    "brightness": (0.8, 1.2),
    "contrast": (0.8, 1.2),
}


@dataclass(frozen=True)
class AugmentationDraw:
    """One random draw: `angle` and `shear` in degrees, translations as shares of the image's sides, factors else."""

    angle: float
    translate_x: float
    translate_y: float
    scale: float
    shear: float
    brightness: float
    contrast: float


def draw_augmentation(generator: torch.Generator) -> AugmentationDraw:
    """Draw every field of an augmentation evenly from its range in `AUGMENTATION_RANGES`."""
    low, high = torch.tensor(list(AUGMENTATION_RANGES.values())).unbind(-1)
    values = low + (high - low) * torch.rand(len(low), generator=generator)
    return AugmentationDraw(**dict(zip(AUGMENTATION_RANGES, values.tolist(), strict=True)))


def augment_radiograph(image: Image.Image, draw: AugmentationDraw) -> Image.Image:
    """Turn, shift, scale, shear and relight an 8-bit radiograph; pixels from outside the image are black.

    Args:
        image (`PIL.Image.Image` of mode "L"): the radiograph after resize and crop.
        draw ([`AugmentationDraw`]): what to do with it.
    """
    return relight(move(image, draw), draw)


def move(image: Image.Image, draw: AugmentationDraw) -> Image.Image:
    """The geometry of `augment_radiograph`."""
    return tvF.affine(
        image,
        angle=draw.angle,
        translate=[round(draw.translate_x * image.width), round(draw.translate_y * image.height)],
        scale=draw.scale,
        shear=[draw.shear, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )


def relight(image: Image.Image, draw: AugmentationDraw) -> Image.Image:
    """The grey levels of `augment_radiograph`."""
    return tvF.adjust_contrast(tvF.adjust_brightness(image, draw.brightness), draw.contrast)


def resize_to_encoder(target_pixel_values: torch.Tensor, image_size: int) -> torch.Tensor:
    """Make the encoder's view of the image that the decoder reconstructs: a bicubic resize with antialiasing.

    Args:
        target_pixel_values (`torch.Tensor` of shape `(..., channels, height, width)`): normalised pixels.
        image_size (`int`): side of the encoder's image in pixels.

    Returns:
        `torch.Tensor` of shape `(..., channels, image_size, image_size)`.
    """
    size = [image_size, image_size]
    return tvF.resize(target_pixel_values, size, interpolation=InterpolationMode.BICUBIC, antialias=True)


def crop_radiograph(image: Image.Image, size: int) -> Image.Image:
    """Scale a radiograph to the short side that belongs to `size`, and cut out its centre of `size` pixels a side."""
    image = tvF.resize(image, [shortest_edge_for(size)], interpolation=InterpolationMode.BICUBIC)
    return tvF.center_crop(image, [size, size])


def normalize_radiograph(image: Image.Image, mean: float = IMAGE_MEAN, std: float = IMAGE_STD) -> torch.Tensor:
    """Normalised pixels of an 8-bit radiograph, of shape `(1, height, width)`."""
    return (tvF.pil_to_tensor(image) / 255 - mean) / std


class StudyTransform:
    """
    Turns the radiographs of one study into the image inputs of [`AltaForPreTraining`] (paper, implementation details).

    With `do_augment`, a view and its prior get one draw; the current frontal is prepared at `target_size`, and the
    encoder sees that image resized on its normalised pixels. Without it, `pixel_values` are what
    [`AltaImageProcessor`] gives, and the target is the same radiograph at `target_size`.

    Args:
        image_size (`int`, defaults to 224): side of the encoder's images in pixels.
        target_size (`int`, defaults to 448): side of the image to reconstruct in pixels.
        do_augment (`bool`, defaults to `True`): whether to augment.
        image_mean, image_std (`float`): normalisation of pixels in 0..1.
    """

    def __init__(
        self,
        image_size: int = 224,
        target_size: int = 448,
        do_augment: bool = True,
        image_mean: float = IMAGE_MEAN,
        image_std: float = IMAGE_STD,
    ):
        self.image_size = image_size
        self.target_size = target_size
        self.do_augment = do_augment
        self.image_mean = image_mean
        self.image_std = image_std

    def __call__(self, study: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        """Prepare one study.

        Args:
            study (`dict`): radiographs by view name, `None` or left out where a view was not taken; each anything
                that `read_radiograph` reads.
            generator (`torch.Generator`, *optional*): source of the draws, needed to augment.

        Returns:
            `dict` with
            - **pixel_values** (`torch.FloatTensor` of shape `(4, 1, image_size, image_size)`) -- zeros where absent.
            - **view_mask** (`torch.BoolTensor` of shape `(4,)`) -- `True` where the view was taken.
            - **target_pixel_values** (`torch.FloatTensor` of shape `(1, target_size, target_size)`) -- zeros without
              a current frontal.

        Raises:
            `ValueError`: augmentation without a `generator`, or pixels that cannot be read.
        """
        draws = self._draw(generator)
        images = {name: read_radiograph(study[name]) for name in VIEW_NAMES if study.get(name) is not None}
        # The three channels of the published input are equal: one stands for them, and the model repeats it.
        target = torch.zeros(1, self.target_size, self.target_size)
        pixel_values = torch.zeros(len(VIEW_NAMES), 1, self.image_size, self.image_size)
        if "current_frontal" in images:
            target = self._prepare(images["current_frontal"], self.target_size, draws["frontal"])
        for position, name in enumerate(VIEW_NAMES):
            if name == "current_frontal" and name in images and self.do_augment:
                pixel_values[position] = resize_to_encoder(target, self.image_size)
            elif name in images:
                pixel_values[position] = self._prepare(images[name], self.image_size, draws[name.split("_")[1]])
        view_mask = torch.tensor([name in images for name in VIEW_NAMES])
        return {
            "pixel_values": pixel_values,
            "view_mask": view_mask,
            "target_pixel_values": target,
        }

    def _draw(self, generator: torch.Generator | None) -> dict[str, AugmentationDraw | None]:
        if not self.do_augment:
            return {"frontal": None, "lateral": None}
        if generator is None:
            raise ValueError("`generator` must be a `torch.Generator` when `do_augment` is on, got None.")
        return {"frontal": draw_augmentation(generator), "lateral": draw_augmentation(generator)}

    def _prepare(self, image: Image.Image, size: int, draw: AugmentationDraw | None) -> torch.Tensor:
        image = crop_radiograph(image, size)
        if draw is not None:
            image = augment_radiograph(image, draw)
        return normalize_radiograph(image, self.image_mean, self.image_std)


__all__ = [
    "AUGMENTATION_RANGES",
    "AugmentationDraw",
    "StudyTransform",
    "augment_radiograph",
    "crop_radiograph",
    "draw_augmentation",
    "move",
    "normalize_radiograph",
    "relight",
    "resize_to_encoder",
]
