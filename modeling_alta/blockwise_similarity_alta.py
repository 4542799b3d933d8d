"""The word-to-patch similarity of `similarity_alta` for every device, in blocks of reports and studies.

Axes: R reports and B studies, C and G of them in a block, L words, N patches, E embedding size.
"""

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable


# Scores held at once: on a CPU a few that stay near its caches, else many for each of the fewer and larger kernels.
CPU_BLOCK_SCORES = 2**18
BLOCK_SCORES = 2**26


def blockwise_similarity(
    word_embeds: torch.Tensor,
    word_mask: torch.Tensor,
    patch_embeds: torch.Tensor,
    patch_mask: torch.Tensor,
    attention_scale: torch.Tensor,
    pooling_scale: torch.Tensor,
) -> torch.Tensor:
    """What `local_similarity` gives, whose arguments these are, in float32 at least."""
    dtype = torch.promote_types(word_embeds.dtype, torch.float32)
    words, word_counts, reports = _densest_first(word_embeds.to(dtype), word_mask)
    patches, patch_counts, studies = _densest_first(patch_embeds.to(dtype), patch_mask)
    scales = attention_scale.to(dtype), pooling_scale.to(dtype)
    with torch.autocast(words.device.type, enabled=False):
        similarity = _LocalSimilarity.apply(words, word_counts, patches, patch_counts, *scales)
    return similarity[reports.argsort()[:, None], studies.argsort()]


def _densest_first(embeds: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Rows with most counting tokens first, and in each row the tokens that count first, in their order.

    Returns:
        the embeddings without the columns in which nothing counts, the counting tokens of every row, and the rows'
        order.
    """
    counts, rows = mask.sum(1).sort(descending=True, stable=True)
    tokens = mask[rows].sort(dim=1, descending=True, stable=True).indices[:, : max(1, int(counts[0]))]
    places = tokens + mask.shape[1] * rows[:, None]
    return embeds.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape), counts.tolist(), rows


class _LocalSimilarity(torch.autograd.Function):
    """Keeps its inputs only: the backward pass computes each block again."""

    @staticmethod
    def forward(ctx, words, word_counts, patches, patch_counts, attention_scale, pooling_scale):
        ctx.save_for_backward(words, patches, attention_scale, pooling_scale)
        ctx.counts = word_counts, patch_counts
        similarity = words.new_empty(len(words), len(patches))
        for rows, columns in _blocks(words, patches):
            block = *_trim(words, word_counts, rows), *_trim(patches, patch_counts, columns)
            *_, context = _attend(*block, attention_scale)
            cosine = _mask_words(_cosine(block[0], context)[0], block[1])
            similarity[rows, columns] = (pooling_scale * cosine).logsumexp(2).T
        return similarity

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        words, patches, attention_scale, pooling_scale = ctx.saved_tensors
        word_counts, patch_counts = ctx.counts
        word_gradient, patch_gradient = torch.zeros_like(words), torch.zeros_like(patches)
        scale_gradients = words.new_zeros(2)
        # Whoever asks for gradients inside autocast has it on here too, whatever held in the forward pass.
        with torch.autocast(words.device.type, enabled=False):
            for rows, columns in _blocks(words, patches):
                block = *_trim(words, word_counts, rows), *_trim(patches, patch_counts, columns)
                given = _block_backward(*block, attention_scale, pooling_scale, gradient[rows, columns].T)
                word_gradient[rows, : given[0].shape[1]] += given[0]
                patch_gradient[columns, : given[1].shape[1]] += given[1]
                scale_gradients += given[2]
        return word_gradient, None, patch_gradient, None, *scale_gradients.unbind()


def _blocks(words: torch.Tensor, patches: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    limit = CPU_BLOCK_SCORES if words.device.type == "cpu" else BLOCK_SCORES
    pairs = max(1, limit // max(1, words.shape[1] * patches.shape[1]))
    num_studies = max(1, min(len(patches), pairs))
    num_reports = max(1, pairs // num_studies)
    for row in range(0, len(words), num_reports):
        for column in range(0, len(patches), num_studies):
            yield slice(row, row + num_reports), slice(column, column + num_studies)


def _trim(embeds: torch.Tensor, counts: list[int], rows: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows as long as the first, which is the longest of them, and a mask of what counts; none if all does."""
    counts = counts[rows]
    longest = counts[0]
    if longest == counts[-1]:
        return embeds[rows, :longest], None
    is_counted = torch.arange(longest) < torch.tensor(counts)[:, None]
    return embeds[rows, :longest], is_counted.to(embeds.device, non_blocking=True)


def _mask_words(values: torch.Tensor, word_mask: torch.Tensor | None) -> torch.Tensor:
    return values if word_mask is None else values.masked_fill_(~word_mask, -torch.inf)


def _attend(words, word_mask, patches, patch_mask, attention_scale):
    """Attention of patches to words and words to patches `(G, N, C, L)`, and the words' contexts `(G, C, L, E)`."""
    scores = _mask_words((patches @ words.flatten(0, 1).T).unflatten(2, words.shape[:2]), word_mask)
    # Softmax twice: first each patch over the words, then each word over the patches.
    to_words = scores.softmax(3)
    scores = torch.mul(to_words, attention_scale, out=scores)
    if patch_mask is not None:
        scores.masked_fill_(~patch_mask[:, :, None, None], -torch.inf)
    to_patches = scores.softmax(1)
    context = to_patches.flatten(2).mT @ patches
    return to_words, to_patches, context.unflatten(1, words.shape[:2])


def _cosine(words, context):
    """Cosines `(G, C, L)` of words and contexts; words and contexts at unit length, with the lengths they had."""
    word_norm = words.norm(dim=2, keepdim=True).clamp_min(1e-8)
    context_norm = context.norm(dim=3, keepdim=True).clamp_min(1e-8)
    unit_words, unit_context = words / word_norm, context / context_norm
    return (unit_words * unit_context).sum(3), (unit_words, word_norm), (unit_context, context_norm)


def _block_backward(words, word_mask, patches, patch_mask, attention_scale, pooling_scale, gradient):
    to_words, to_patches, context = _attend(words, word_mask, patches, patch_mask, attention_scale)
    cosine, (unit_words, word_norm), (unit_context, context_norm) = _cosine(words, context)
    pooled = _mask_words(pooling_scale * cosine, word_mask).softmax(2) * gradient.unsqueeze(2)
    pooling_gradient = (pooled * cosine).sum()
    pooled, cosine = (pooling_scale * pooled).unsqueeze(3), cosine.unsqueeze(3)
    word_gradient = (pooled * (unit_context - cosine * unit_words)).sum(0) / word_norm
    context_gradient = pooled * (unit_words - cosine * unit_context) / context_norm  # (G, C, L, E)
    mean_gradient = (context_gradient * context).sum(3).unsqueeze(1)  # that the softmax over patches takes off
    context_gradient = context_gradient.flatten(1, 2)
    patch_gradient = to_patches.flatten(2) @ context_gradient
    gradients = (patches @ context_gradient.mT).unflatten(2, words.shape[:2])  # (G, N, C, L)
    gradients.sub_(mean_gradient).mul_(to_patches).mul_(to_words)
    sums = gradients.sum(3, keepdim=True)
    gradients.addcmul_(to_words, sums, value=-1).mul_(attention_scale)
    gradients = gradients.flatten(2)
    word_gradient += (gradients.flatten(0, 1).T @ patches.flatten(0, 1)).unflatten(0, words.shape[:2])
    patch_gradient += gradients @ words.flatten(0, 1)
    return word_gradient, patch_gradient, torch.stack([sums.sum(), pooling_gradient])


__all__ = ["blockwise_similarity"]
