"""The four losses of ALTA as pure functions, correct over one process or many.

In a distributed run every process calls them with its own studies. Each returns a value whose mean over the processes
is the loss of the whole batch, so that the averaged gradients of data-parallel training are those of one process.

Axes: B studies, V views, N patches, L words, E embedding size.
"""

import torch
import torch.distributed as dist
from torch import nn

from .similarity_alta import local_similarity


class _GatherWithGradient(torch.autograd.Function):
    """all_gather whose backward sums the gradients of all processes, which torch's own leaves out."""

    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the equally shaped tensors of all processes along the first axis; the identity in one process."""
    return _GatherWithGradient.apply(tensor) if _is_distributed() else tensor


def global_contrastive_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy between images and reports over the batch of all processes (paper, section III-C).

    Args:
        image_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): L2-normalised.
        text_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): L2-normalised.
        logit_scale (scalar `torch.Tensor`): factor of the cosines, already exponentiated.
    """
    image_embeds, text_embeds = image_embeds.float(), text_embeds.float()
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits_per_text = logit_scale.float() * text_embeds @ gather_with_gradient(image_embeds).T
        logits_per_image = logit_scale.float() * image_embeds @ gather_with_gradient(text_embeds).T
    return _symmetric_cross_entropy(logits_per_text, logits_per_image)


def local_contrastive_loss(
    word_embeds: torch.Tensor,
    word_mask: torch.Tensor,
    patch_embeds: torch.Tensor,
    patch_mask: torch.Tensor,
    attention_scale: torch.Tensor,
    pooling_scale: torch.Tensor,
    contrast_scale: torch.Tensor,
) -> torch.Tensor:
    """Symmetric cross-entropy on word-to-patch similarities, every report against every study (paper, section III-C).

    Args:
        word_embeds (`torch.Tensor` of shape `(batch_size, num_words, projection_dim)`): not normalised.
        word_mask (`torch.BoolTensor` of shape `(batch_size, num_words)`): `True` where a word stands.
        patch_embeds (`torch.Tensor` of shape `(batch_size, num_patches, projection_dim)`): patches of all views.
        patch_mask (`torch.BoolTensor` of shape `(batch_size, num_patches)`): `True` where a patch counts.
        attention_scale, pooling_scale, contrast_scale (scalar `torch.Tensor`): the three trained scales, already
            exponentiated.
    """
    all_patches, all_patch_mask = gather_with_gradient(patch_embeds), gather_with_gradient(patch_mask)
    logits_per_text = local_similarity(
        word_embeds, word_mask, all_patches, all_patch_mask, attention_scale, pooling_scale
    )
    if not _is_distributed():
        return _symmetric_cross_entropy(contrast_scale * logits_per_text, contrast_scale * logits_per_text.T)
    all_words, all_word_mask = _gather_words(word_embeds, word_mask)
    logits_per_image = local_similarity(
        all_words, all_word_mask, patch_embeds, patch_mask, attention_scale, pooling_scale
    ).T
    return _symmetric_cross_entropy(contrast_scale * logits_per_text, contrast_scale * logits_per_image)


def image_reconstruction_loss(
    predicted_patches: torch.Tensor, target_patches: torch.Tensor, norm_pix_loss: bool
) -> torch.Tensor:
    """Mean squared error on the masked patches, the only ones given (MRM, section 3).

    Args:
        predicted_patches (`torch.Tensor` of shape `(batch_size, num_masked, patch_size**2 * num_channels)`).
        target_patches (`torch.Tensor` of the same shape): pixels of the image to reconstruct.
        norm_pix_loss (`bool`): normalise every target patch by its own mean and unbiased variance.
    """
    predicted_patches, target_patches = predicted_patches.float(), target_patches.float()
    if norm_pix_loss:
        target_patches = target_patches - target_patches.mean(-1, keepdim=True)
        # Not `var`, which warns about a batch without any image.
        variance = target_patches.square().sum(-1, keepdim=True) / (target_patches.shape[-1] - 1)
        target_patches = target_patches / (variance + 1e-6).sqrt()
    error = (predicted_patches - target_patches).square().mean(-1)
    return _mean_over_processes(error.sum(), torch.tensor(float(error.numel()), device=error.device))


def masked_report_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the masked tokens, mean over all of them in the batch of all processes.

    Args:
        logits (`torch.Tensor` of shape `(num_masked, vocab_size)`): at the masked tokens only.
        labels (`torch.LongTensor` of shape `(num_masked,)`): the tokens that stood there.
    """
    total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return _mean_over_processes(total, torch.tensor(float(len(labels)), device=logits.device))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _symmetric_cross_entropy(logits_per_text: torch.Tensor, logits_per_image: torch.Tensor) -> torch.Tensor:
    size = len(logits_per_text)
    offset = dist.get_rank() * size if _is_distributed() else 0
    target = torch.arange(offset, offset + size, device=logits_per_text.device)
    rows = nn.functional.cross_entropy(logits_per_text.float(), target)
    return (rows + nn.functional.cross_entropy(logits_per_image.float(), target)) / 2


def _gather_words(word_embeds, word_mask):
    longest = torch.tensor(word_embeds.shape[1], device=word_embeds.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - word_embeds.shape[1]
    word_embeds = nn.functional.pad(word_embeds, (0, 0, 0, missing))
    return gather_with_gradient(word_embeds), gather_with_gradient(nn.functional.pad(word_mask, (0, missing)))


def _mean_over_processes(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    if _is_distributed():
        count = count.detach().clone()
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return total / count.clamp(min=torch.finfo(torch.float32).tiny)


__all__ = [
    "gather_with_gradient",
    "global_contrastive_loss",
    "image_reconstruction_loss",
    "local_contrastive_loss",
    "masked_report_loss",
]
