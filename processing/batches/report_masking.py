"""What training does to a report: it shuffles the sentences and masks tokens."""

import torch

from processing.reports.sentences import split_sentences


def shuffle_sentences(report: str, generator: torch.Generator) -> str:
    """Put the sentences of a report in random order (paper, implementation details).

    Args:
        report (`str`): free text.
        generator (`torch.Generator`): source of the order.
    """
    sentences = split_sentences(report)
    order = torch.randperm(len(sentences), generator=generator).tolist()
    return " ".join(sentences[position] for position in order)


def mask_report(
    input_ids: torch.Tensor,
    special_tokens_mask: torch.Tensor,
    mask_token_id: int,
    ratio: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace a share of the tokens of each report by `[MASK]` (paper, section III-C; MRM, section 3).

    Exactly `round(ratio * n)` of the n ordinary tokens of a report are masked, and at least one of them unless `ratio`
    is 0. Masking one report at a time, before padding, makes the choice independent of the batch.

    Args:
        input_ids (`torch.LongTensor` of shape `(..., num_tokens)`): tokens of one or more reports.
        special_tokens_mask (`torch.Tensor` of the same shape): non-zero at special and padding tokens.
        mask_token_id (`int`): what a masked token becomes.
        ratio (`float`): share of the ordinary tokens to mask, in 0..1.
        generator (`torch.Generator`): source of the choice.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor]`: the masked tokens, and the labels: the token where it was masked,
        -100 elsewhere; both of the shape of `input_ids`.

    Raises:
        `ValueError`: a `ratio` outside 0..1, or masks of another shape than the tokens.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"`ratio` must be in 0..1, got {ratio}.")
    if special_tokens_mask.shape != input_ids.shape:
        raise ValueError(
            f"`special_tokens_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)}, "
            f"got {tuple(special_tokens_mask.shape)}."
        )
    is_ordinary = ~special_tokens_mask.bool()
    num_ordinary = is_ordinary.sum(-1, keepdim=True)
    num_masked = (ratio * num_ordinary).round().clamp(min=int(ratio > 0)).minimum(num_ordinary)
    noise = torch.rand(input_ids.shape, generator=generator).masked_fill(~is_ordinary, 2.0)
    is_masked = noise.argsort(-1).argsort(-1) < num_masked
    return input_ids.masked_fill(is_masked, mask_token_id), input_ids.masked_fill(~is_masked, -100)


__all__ = ["mask_report", "shuffle_sentences"]
