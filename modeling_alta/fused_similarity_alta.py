"""The word-to-patch similarity of `similarity_alta` for GPUs, in kernels of its own: no score ever leaves the chip.

A program holds the words of a report and goes through the patches of a study, some at a time, as flash attention does
(Dao, "FlashAttention-2", ICLR 2024), with a softmax over the words inside. Products are taken in bfloat16, all else in
float32. The backward pass computes it again, once for the words and once for the patches, so that each gradient is
added up in one order.

Axes: R reports, B studies, L words, N patches, E embedding size.
"""

import torch
from torch.autograd.function import once_differentiable

from .vision_alta import take_tokens


# In a `try` block the Hub's import check does not count `triton` as a requirement.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The fused similarity needs the package `triton`, which torch for GPUs brings along.") from error


MAX_WORDS = 128
EMBEDDING_SIZES = (16, 32, 64, 128)
PATCHES_AT_ONCE = 32
SHARED_MEMORY = 2**17  # bytes that a program takes at most: data-centre GPUs from the A100 on have them
PROGRAMS = 1024  # that fill a large GPU: the gradient of a report or study is split until there are about as many


def is_fusable(words: torch.Tensor, patches: torch.Tensor) -> bool:
    """Whether the kernels take words `(R, L, E)` and patches `(B, N, E)`: in bfloat16, on a GPU that can run them."""
    return (
        words.dtype == patches.dtype == torch.bfloat16
        and words.shape[1] <= MAX_WORDS
        and words.shape[2] in EMBEDDING_SIZES
        and words.device.type == "cuda"
        and torch.version.hip is None
        and _shared_memory(words.device) >= SHARED_MEMORY
    )


def _shared_memory(device: torch.device) -> int:
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)


def fused_similarity(
    word_embeds: torch.Tensor,
    word_mask: torch.Tensor,
    patch_embeds: torch.Tensor,
    patch_mask: torch.Tensor,
    attention_scale: torch.Tensor,
    pooling_scale: torch.Tensor,
) -> torch.Tensor:
    """What `local_similarity` gives, whose arguments these are, for embeddings that `is_fusable` takes; in float32."""
    words, patches = _counted_first(word_embeds, word_mask), _counted_first(patch_embeds, patch_mask)
    return _FusedSimilarity.apply(*words, *patches, attention_scale.float(), pooling_scale.float())


def _counted_first(embeds: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In every row the tokens that count first, in their order, and their number."""
    order = mask.sort(dim=1, descending=True, stable=True).indices
    return take_tokens(embeds, order), mask.sum(1, dtype=torch.int32)


class _FusedSimilarity(torch.autograd.Function):
    """`similarity_forward`, whose backward pass computes all of it again."""

    @staticmethod
    def forward(ctx, words, word_counts, patches, patch_counts, attention_scale, pooling_scale):
        inputs = words, word_counts, patches, patch_counts, attention_scale, pooling_scale
        ctx.save_for_backward(*inputs)
        return similarity_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        words, patches, scales = similarity_backward(*ctx.saved_tensors, gradient)
        return words, None, patches, None, *scales.unbind()


def similarity_forward(words, word_counts, patches, patch_counts, attention_scale, pooling_scale) -> torch.Tensor:
    """Similarity of every report to every study.

    Args:
        words (`torch.Tensor` of shape `(num_reports, num_words, embedding_size)`): contiguous; those that count first.
        word_counts (`torch.IntTensor` of shape `(num_reports,)`): words that count.
        patches (`torch.Tensor` of shape `(num_studies, num_patches, embedding_size)`): likewise, of the same dtype.
        patch_counts (`torch.IntTensor` of shape `(num_studies,)`).
        attention_scale, pooling_scale (scalar `torch.Tensor`): in float32, on the same device.

    Returns:
        `torch.Tensor` of shape `(num_reports, num_studies)`, in float32.
    """
    similarity = words.new_empty(len(words), len(patches), dtype=torch.float32)
    inputs = words, word_counts, patches, patch_counts, attention_scale, pooling_scale
    with torch.cuda.device_of(words):
        _forward_kernel[(len(patches), len(words))](*inputs, similarity, *_sizes(words, patches), **_constants(words))
    return similarity


def similarity_backward(
    words, word_counts, patches, patch_counts, attention_scale, pooling_scale, gradient
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients at words, patches and the two scales, in float32, given the one at the similarity `(R, B)`."""
    num_reports, num_studies = gradient.shape
    inputs = words, word_counts, patches, patch_counts, attention_scale, pooling_scale, gradient.contiguous()
    sizes, constants = _sizes(words, patches), _constants(words)
    splits = _split(num_reports, num_studies)
    word_parts = words.new_empty(splits, *words.shape, dtype=torch.float32)
    scale_parts = words.new_empty(splits, num_reports, 2, dtype=torch.float32)
    patch_splits = _split(num_studies, num_reports)
    patch_parts = words.new_zeros(patch_splits, *patches.shape, dtype=torch.float32)
    with torch.cuda.device_of(words):
        _words_kernel[(num_reports, splits)](*inputs, word_parts, scale_parts, *sizes, **constants)
        _patches_kernel[(num_studies, patch_splits)](*inputs, patch_parts, *sizes, **constants)
    return word_parts.sum(0), patch_parts.sum(0), scale_parts.sum((0, 1))


def _split(num_owners: int, num_others: int) -> int:
    return max(1, min(num_others, PROGRAMS // num_owners))


def _sizes(words: torch.Tensor, patches: torch.Tensor) -> tuple[int, ...]:
    return len(words), len(patches), words.shape[1], patches.shape[1]


def _constants(words: torch.Tensor) -> dict[str, int]:
    return {
        "WORDS": max(16, triton.next_power_of_2(words.shape[1])),
        "SIZE": words.shape[2],
        "PATCHES": PATCHES_AT_ONCE,
        "num_warps": 8,
    }


@triton.jit
def _load_words(words, report, num_words, count, WORDS: tl.constexpr, SIZE: tl.constexpr):
    """Words `(L, E)` of a report, zeros beyond its count."""
    rows, columns = tl.arange(0, WORDS), tl.arange(0, SIZE)
    places = (report * num_words + rows[:, None]) * SIZE + columns[None, :]
    return tl.load(words + places, mask=rows[:, None] < count, other=0.0)


@triton.jit
def _load_patches(patches, study, start, num_patches, count, SIZE: tl.constexpr, PATCHES: tl.constexpr):
    """Some patches of a study, transposed to `(E, N)`, zeros beyond its count."""
    rows, columns = tl.arange(0, SIZE), start + tl.arange(0, PATCHES)
    places = (study * num_patches + columns[None, :]) * SIZE + rows[:, None]
    return tl.load(patches + places, mask=columns[None, :] < count, other=0.0)


@triton.jit
def _to_words(word, patch, is_word):
    """Softmax of every patch over the words: `(L, N)`."""
    scores = tl.where(is_word[:, None], tl.dot(word, patch), float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 0)[None, :])
    return weights / tl.sum(weights, 0)[None, :]


@triton.jit
def _attend(
    word, is_word, patches, study, num_patches, count, scale,
    WORDS: tl.constexpr, SIZE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    """The words' contexts `(L, E)` in a study, and of the softmax over its patches the maxima and sums `(L,)`."""
    highest = tl.full([WORDS], float("-inf"), tl.float32)
    total = tl.zeros([WORDS], tl.float32)
    context = tl.zeros([WORDS, SIZE], tl.float32)
    for start in range(0, count, PATCHES):
        patch = _load_patches(patches, study, start, num_patches, count, SIZE, PATCHES)
        is_patch = start + tl.arange(0, PATCHES) < count
        scores = tl.where(is_patch[None, :], scale * _to_words(word, patch, is_word), float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights, correction = tl.exp(scores - new_highest[:, None]), tl.exp(highest - new_highest)
        weights = weights.to(word.dtype)
        total = total * correction + tl.sum(weights.to(tl.float32), 1)
        context = context * correction[:, None] + tl.dot(weights, tl.trans(patch))
        highest = new_highest
    return context / total[:, None], highest, total


@triton.jit
def _norm(values):
    return tl.maximum(tl.sqrt(tl.sum(values * values, 1)), 1e-8)


@triton.jit
def _context_backward(word, context, is_word, pooling_scale, gradient):
    """From the gradient at the similarity of a pair to those at its words `(L, E)`, contexts and pooling scale."""
    word = word.to(tl.float32)
    word_norm, context_norm = _norm(word), _norm(context)
    unit_word, unit_context = word / word_norm[:, None], context / context_norm[:, None]
    cosine = tl.sum(unit_word * unit_context, 1)
    logits = tl.where(is_word, pooling_scale * cosine, float("-inf"))
    pooled = tl.exp(logits - tl.max(logits, 0))
    pooled = gradient * pooled / tl.sum(pooled, 0)
    slope = pooling_scale * pooled
    word_gradient = (slope / word_norm)[:, None] * (unit_context - cosine[:, None] * unit_word)
    context_gradient = (slope / context_norm)[:, None] * (unit_word - cosine[:, None] * unit_context)
    return word_gradient, context_gradient, tl.sum(pooled * cosine, 0)


@triton.jit
def _pair_backward(
    word, is_word, patches, study, num_patches, count, scale, pooling_scale, gradient,
    WORDS: tl.constexpr, SIZE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    """What a pair gives before its patches are gone through: gradients at words and pooling scale, at the contexts in
    the dtype of the words, and of the softmax over the patches the mean gradients, maxima and sums."""
    context, highest, total = _attend(word, is_word, patches, study, num_patches, count, scale, WORDS, SIZE, PATCHES)
    of_words, of_context, of_pooling = _context_backward(word, context, is_word, pooling_scale, gradient)
    of_context = of_context.to(word.dtype)
    mean_gradient = tl.sum(of_context.to(tl.float32) * context, 1)
    return of_words, of_pooling, of_context, mean_gradient, highest, total


@triton.jit
def _patch_backward(
    word, is_word, patches, study, start, num_patches, count, scale, of_context, mean_gradient, highest, total,
    SIZE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    """Some patches `(E, N)`, the softmax over the patches and the gradients at the scores, both `(L, N)`, and what a
    patch adds to the gradient at the attention scale `(N,)`."""
    patch = _load_patches(patches, study, start, num_patches, count, SIZE, PATCHES)
    is_patch = start + tl.arange(0, PATCHES) < count
    to_words = _to_words(word, patch, is_word)
    to_patches = tl.exp(scale * to_words - highest[:, None]) / total[:, None]
    to_patches = tl.where(is_patch[None, :], to_patches, 0.0)
    weighted = to_patches * (tl.dot(of_context, patch) - mean_gradient[:, None]) * to_words
    sums = tl.sum(weighted, 0)
    return patch, to_patches, scale * (weighted - to_words * sums[None, :]), sums


@triton.jit
def _forward_kernel(
    words, word_counts, patches, patch_counts, attention_scale, pooling_scale, similarity,
    num_reports, num_studies, num_words, num_patches,
    WORDS: tl.constexpr, SIZE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    study, report = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    word_count, patch_count = tl.load(word_counts + report), tl.load(patch_counts + study)
    is_word = tl.arange(0, WORDS) < word_count
    word = _load_words(words, report, num_words, word_count, WORDS, SIZE)
    scale = tl.load(attention_scale)
    context, _, _ = _attend(word, is_word, patches, study, num_patches, patch_count, scale, WORDS, SIZE, PATCHES)
    word = word.to(tl.float32)
    cosine = tl.sum(word * context, 1) / (_norm(word) * _norm(context))
    logits = tl.where(is_word, tl.load(pooling_scale) * cosine, float("-inf"))
    highest = tl.max(logits, 0)
    tl.store(similarity + report * num_studies + study, highest + tl.log(tl.sum(tl.exp(logits - highest), 0)))


@triton.jit
def _words_kernel(
    words, word_counts, patches, patch_counts, attention_scale, pooling_scale, gradient, word_parts, scale_parts,
    num_reports, num_studies, num_words, num_patches,
    WORDS: tl.constexpr, SIZE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    report, split, num_splits = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    word_count = tl.load(word_counts + report)
    is_word = tl.arange(0, WORDS) < word_count
    word = _load_words(words, report, num_words, word_count, WORDS, SIZE)
    scale, pooling = tl.load(attention_scale), tl.load(pooling_scale)
    word_gradient = tl.zeros([WORDS, SIZE], tl.float32)
    scale_gradient, pooling_gradient = tl.zeros([PATCHES], tl.float32), 0.0
    for study in range(split, num_studies, num_splits):
        count = tl.load(patch_counts + study)
        given = tl.load(gradient + report * num_studies + study)
        of_words, of_pooling, of_context, mean_gradient, highest, total = _pair_backward(
            word, is_word, patches, study, num_patches, count, scale, pooling, given, WORDS, SIZE, PATCHES
        )
        word_gradient += of_words
        pooling_gradient += of_pooling
        for start in range(0, count, PATCHES):
            patch, to_patches, of_scores, sums = _patch_backward(
                word, is_word, patches, study, start, num_patches, count, scale,
                of_context, mean_gradient, highest, total, SIZE, PATCHES,
            )  # fmt: skip
            word_gradient += tl.dot(of_scores.to(word.dtype), tl.trans(patch))
            scale_gradient += sums
    rows, columns = tl.arange(0, WORDS), tl.arange(0, SIZE)
    place = split * num_reports + report
    places = (place * num_words + rows[:, None]) * SIZE + columns[None, :]
    tl.store(word_parts + places, word_gradient, mask=rows[:, None] < num_words)
    tl.store(scale_parts + 2 * place, tl.sum(scale_gradient, 0))
    tl.store(scale_parts + 2 * place + 1, pooling_gradient)


@triton.jit
def _patches_kernel(
    words, word_counts, patches, patch_counts, attention_scale, pooling_scale, gradient, patch_parts,
    num_reports, num_studies, num_words, num_patches,
    WORDS: tl.constexpr, SIZE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    study, split, num_splits = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    count = tl.load(patch_counts + study)
    scale, pooling = tl.load(attention_scale), tl.load(pooling_scale)
    for report in range(split, num_reports, num_splits):
        word_count = tl.load(word_counts + report)
        is_word = tl.arange(0, WORDS) < word_count
        word = _load_words(words, report, num_words, word_count, WORDS, SIZE)
        given = tl.load(gradient + report * num_studies + study)
        of_words, of_pooling, of_context, mean_gradient, highest, total = _pair_backward(
            word, is_word, patches, study, num_patches, count, scale, pooling, given, WORDS, SIZE, PATCHES
        )
        tl.debug_barrier()  # a thread may load below what another one stored for the report before
        for start in range(0, count, PATCHES):
            patch, to_patches, of_scores, sums = _patch_backward(
                word, is_word, patches, study, start, num_patches, count, scale,
                of_context, mean_gradient, highest, total, SIZE, PATCHES,
            )  # fmt: skip
            added = tl.dot(tl.trans(of_context), to_patches.to(word.dtype))
            added += tl.dot(tl.trans(word), of_scores.to(word.dtype))
            rows, columns = tl.arange(0, SIZE), start + tl.arange(0, PATCHES)
            places = ((split * num_studies + study) * num_patches + columns[None, :]) * SIZE + rows[:, None]
            kept = tl.load(patch_parts + places, mask=columns[None, :] < count, other=0.0)
            tl.store(patch_parts + places, kept + added, mask=columns[None, :] < count)


__all__ = ["fused_similarity", "is_fusable", "similarity_backward", "similarity_forward"]
