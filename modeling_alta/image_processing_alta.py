"""Image processor of ALTA: studies of up to four radiographs in, normalised pixels and the mask of their views out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from .configuration_alta import VIEW_NAMES
from .radiograph_alta import read_radiograph


# Grey level of chest radiographs, for pixels in 0..1.
IMAGE_MEAN = 0.4785
IMAGE_STD = 0.2834


def shortest_edge_for(crop_size: int) -> int:
    """Short side in pixels that a radiograph is resized to before its centre crop, 256 for a crop of 224.

    Args:
        crop_size (`int`): side of the crop in pixels.
    """
    return round(crop_size * 256 / 224)


class AltaImageProcessor(PilBackend):
    """
    Turns radiographs into the input of ALTA's vision tower (paper, section III-A): short side 256 by PIL's bicubic
    filter on 8-bit pixels, centre crop of 224, `(pixels / 255 - 0.4785) / 0.2834`, three equal channels.

    Args:
        do_resize, do_center_crop, do_rescale, do_normalize (`bool`, defaults to `True`): whether to take each step.
        size (`dict`, defaults to `{"shortest_edge": 256}`): size in pixels after the resize.
        crop_size (`dict`, defaults to `{"height": 224, "width": 224}`): size in pixels after the centre crop.
        resample (`PILImageResampling`, defaults to `BICUBIC`): filter of the resize.
        rescale_factor (`float`, defaults to 1 / 255): factor on the 8-bit pixels.
        image_mean, image_std (`list[float]` of length 3): normalisation per channel, after the rescale.
    """

    model_input_names = ["pixel_values", "view_mask"]
    do_resize = True
    size = {"shortest_edge": 256}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 224, "width": 224}
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [IMAGE_MEAN] * 3
    image_std = [IMAGE_STD] * 3

    @classmethod
    def from_image_size(cls, image_size: int, **kwargs: Unpack[ImagesKwargs]) -> "AltaImageProcessor":
        """Processor of a model whose images have `image_size` pixels a side; the resize keeps its published ratio."""
        size = {"shortest_edge": shortest_edge_for(image_size)}
        return cls(size=size, crop_size={"height": image_size, "width": image_size}, **kwargs)

    def preprocess(self, images: Any, *args, **kwargs: Unpack[ImagesKwargs]) -> BatchFeature:
        """Prepare one study or image, or a batch of them.

        Args:
            images: a study, a list of studies, an image, or a list of images. A study is a dict with any of
                `current_frontal`, `current_lateral`, `prior_frontal`, `prior_lateral`, at least one of them current;
                an absent view is left out or `None`. An image is a path (DICOM, PNG, JPEG), encoded bytes, a
                `{"bytes", "path"}` dict, or a PIL, numpy or torch image; alone it stands for a study of one current
                frontal. A numpy or torch batch of 4 dimensions is a list of images.
            kwargs: any argument of the constructor, for this call alone, and `return_tensors` (`"pt"`, `"np"`).

        Returns:
            `BatchFeature` with
            - **pixel_values** -- `float32` of shape `(batch, 3, height, width)` if only images came, of shape
              `(batch, 4, 3, height, width)` with zeros for the absent views if a study came.
            - **view_mask** -- `bool` of shape `(batch, 4)`, `True` where the view was taken; only if a study came.

        Raises:
            `ValueError`: an empty list, a study without a current view, an unknown view, pixels that cannot be read.
            `TypeError`: an item that is neither a study nor an image.
        """
        return super().preprocess(images, *args, **kwargs)

    def process_image(self, image: Any, *args, **kwargs) -> np.ndarray:
        """Read one radiograph as 8-bit grey pixels of shape `(1, height, width)`."""
        return np.asarray(read_radiograph(image))[None]

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """Cut the middle out of an image of shape `(channels, height, width)`.

        Raises:
            `ValueError`: the crop is larger than the image.
        """
        height, width = image.shape[-2:]
        if size.height > height or size.width > width:
            raise ValueError(
                f"`crop_size` must fit into the resized image of {height} x {width} pixels, "
                f"got {size.height} x {size.width}."
            )
        # Halves go to the even pixel as in torchvision, which made the published pixels; transformers rounds down.
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def _preprocess_image_like_inputs(self, images: Any, *args, return_tensors=None, **kwargs) -> BatchFeature:
        items = _list_items(images)
        if any(_is_study(item) for item in items):
            studies = [item if _is_study(item) else {"current_frontal": item} for item in items]
            data = self._preprocess_studies(studies, **kwargs)
        else:
            data = {"pixel_values": [self._preprocess_one(item, f"[{i}]", **kwargs) for i, item in enumerate(items)]}
        return BatchFeature(data, tensor_type=return_tensors)

    def _preprocess_studies(self, studies: list[Mapping], **kwargs) -> dict[str, list[np.ndarray]]:
        pixel_values, view_mask = [], []
        for index, study in enumerate(studies):
            _check_study(study, index)
            views = {
                name: self._preprocess_one(study[name], f"[{index}][{name!r}]", **kwargs)
                for name in VIEW_NAMES
                if study.get(name) is not None
            }
            pixel_values.append(_stack_views(views, index))
            view_mask.append(np.array([name in views for name in VIEW_NAMES]))
        return {"pixel_values": pixel_values, "view_mask": view_mask}

    def _preprocess_one(self, image: Any, place: str, **kwargs) -> np.ndarray:
        if image is None or isinstance(image, list | tuple):
            raise TypeError(
                f"`images`{place} must be a study (a dict of views) or an image, got {type(image).__name__}."
            )
        try:
            pixels = self.process_image(image)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"`images`{place} cannot be used as a radiograph: {error}") from error
        return self._transform(pixels, **kwargs)

    def _transform(
        self,
        pixels: np.ndarray,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        **kwargs,
    ) -> np.ndarray:
        if do_resize:
            pixels = self.resize(pixels, size, resample)
        if do_center_crop:
            pixels = self.center_crop(pixels, crop_size)
        pixels = np.repeat(pixels, 3, axis=0)
        if do_rescale:
            pixels = self.rescale(pixels, rescale_factor)
        return self.normalize(pixels, image_mean, image_std) if do_normalize else pixels


def _list_items(images: Any) -> list:
    is_batch = getattr(images, "ndim", None) == 4
    if not is_batch and (not isinstance(images, Sequence) or isinstance(images, str | bytes | bytearray | memoryview)):
        return [images]
    if len(images) == 0:
        raise ValueError("`images` must hold at least one study or image, got an empty list.")
    return list(images)


def _is_study(item: Any) -> bool:
    is_encoded_image = isinstance(item, Mapping) and len(item) > 0 and set(item) <= {"bytes", "path"}
    return isinstance(item, Mapping) and not is_encoded_image


def _check_study(study: Mapping, index: int) -> None:
    unknown = [name for name in study if name not in VIEW_NAMES]
    if unknown:
        raise ValueError(f"`images`[{index}] must have views out of {list(VIEW_NAMES)}, got {unknown}.")
    if all(study.get(name) is None for name in ("current_frontal", "current_lateral")):
        taken = [name for name in study if study[name] is not None]
        raise ValueError(f"`images`[{index}] must have a `current_frontal` or a `current_lateral`, got {taken}.")


def _stack_views(views: dict[str, np.ndarray], index: int) -> np.ndarray:
    shapes = {pixels.shape for pixels in views.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"`images`[{index}] must have views of one size after the crop, got {sorted(shapes)}; "
            "leave `do_center_crop` on or pass one `height` and `width` as `size`."
        )
    absent = np.zeros_like(next(iter(views.values())))
    return np.stack([views.get(name, absent) for name in VIEW_NAMES])


__all__ = ["IMAGE_MEAN", "IMAGE_STD", "AltaImageProcessor", "shortest_edge_for"]
