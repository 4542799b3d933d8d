"""Word-to-patch similarity of every report to every study, in memory that does not grow with the batch."""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch

from .blockwise_similarity_alta import blockwise_similarity


# `triton` is optional: without it GPUs take the way of every device.
try:
    from .fused_similarity_alta import fused_similarity, is_fusable
except ImportError:

    def is_fusable(words: torch.Tensor, patches: torch.Tensor) -> bool:
        return False


KERNEL_TOLERANCE = 0.03  # relative; bfloat16 makes a tenth of it


def local_similarity(
    word_embeds: torch.Tensor,
    word_mask: torch.Tensor,
    patch_embeds: torch.Tensor,
    patch_mask: torch.Tensor,
    attention_scale: torch.Tensor,
    pooling_scale: torch.Tensor,
) -> torch.Tensor:
    """Similarity of every report to every study: `log Σ_words exp(pooling_scale * cos(word, context))`.

    In bfloat16 a GPU takes kernels of its own, once they have shown in this process that they give what they should.

    Args:
        word_embeds (`torch.Tensor` of shape `(num_reports, num_words, embedding_size)`).
        word_mask (`torch.BoolTensor` of shape `(num_reports, num_words)`): `True` where a word stands.
        patch_embeds (`torch.Tensor` of shape `(num_studies, num_patches, embedding_size)`).
        patch_mask (`torch.BoolTensor` of shape `(num_studies, num_patches)`): `True` where a patch counts.
        attention_scale, pooling_scale (scalar `torch.Tensor`).

    Returns:
        `torch.Tensor` of shape `(num_reports, num_studies)`, in float32 at least.
    """
    is_fused = is_fusable(word_embeds, patch_embeds) and _is_trusted(word_embeds.device, *word_embeds.shape[1:])
    similarity = fused_similarity if is_fused else blockwise_similarity
    return similarity(word_embeds, word_mask, patch_embeds, patch_mask, attention_scale, pooling_scale)


def _is_trusted(device: torch.device, num_words: int, size: int) -> bool:
    # The kernels hold a power of two of words, and each has a form of its own.
    return _try_kernels(device, 1 << (num_words - 1).bit_length(), size)


@lru_cache
def _try_kernels(device: torch.device, num_words: int, size: int) -> bool:
    """Whether the kernels run on a device and give what every device can compute; a warning if not."""
    try:
        difference = _kernel_difference(device, num_words, size)
    except Exception as error:  # of a compiler that is missing, a driver, or too little memory on the chip
        failure = f"fail: {error}"
    else:
        if difference <= KERNEL_TOLERANCE:
            return True
        failure = f"are off by {difference:.2g}"
    warnings.warn(f"The local loss is slower than it could be on {device}: its kernels {failure}", stacklevel=2)
    return False


@torch.inference_mode(False)
@torch.enable_grad()
def _kernel_difference(device: torch.device, num_words: int, size: int) -> float:
    """Largest relative difference of the similarity and its gradients, on made embeddings: 40 reports and studies, so
    many that a program of the kernels goes through several."""
    generator = torch.Generator().manual_seed(0)
    embeds = [0.3 * torch.randn(40, number, size, generator=generator) for number in (num_words, 99)]
    masks = [(torch.rand(value.shape[:2], generator=generator) < 0.9).to(device) for value in embeds]
    for mask in masks:
        mask[:, 0] = True
    gradient = torch.randn(40, 40, generator=generator).to(device)

    def run(similarity_of: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        words, patches = (value.to(device, torch.bfloat16).requires_grad_() for value in embeds)
        scales = [torch.tensor(14.0, device=device, requires_grad=True) for _ in range(2)]
        similarity = similarity_of(words, masks[0], patches, masks[1], *scales)
        of_words, of_patches, *of_scales = torch.autograd.grad(similarity, [words, patches, *scales], gradient)
        # Together, since the one at the attention scale is a sum that nearly cancels, or does with a single word.
        return [similarity.detach(), of_words, of_patches, torch.stack(of_scales)]

    results = zip(run(fused_similarity), run(blockwise_similarity), strict=True)
    differences = [(ours.float() - other.float()).norm() / other.float().norm() for ours, other in results]
    return float(torch.stack(differences).max())  # which is not a number if one of them is none


__all__ = ["local_similarity"]
