import pytest
import torch

from processing.batches.report_masking import mask_report, shuffle_sentences
from processing.reports.sentences import split_sentences


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mask(num_ordinary, ratio, seed=0):
    """A report of `[CLS]`, `num_ordinary` tokens, `[SEP]` and two paddings."""
    input_ids = torch.tensor([2, *range(10, 10 + num_ordinary), 3, 0, 0])
    special_tokens_mask = torch.tensor([1, *[0] * num_ordinary, 1, 1, 1])
    return input_ids, *mask_report(input_ids, special_tokens_mask, 4, ratio, make_generator(seed))


@pytest.mark.parametrize(
    ("num_ordinary", "ratio", "num_masked"),
    [(10, 0.5, 5), (9, 0.5, 4), (11, 0.5, 6), (1, 0.5, 1), (3, 0.15, 1), (20, 0.15, 3), (0, 0.5, 0), (9, 0.0, 0)],
)
def test_the_rounded_share_of_the_ordinary_tokens_is_masked(num_ordinary, ratio, num_masked):
    input_ids, masked_input_ids, labels = mask(num_ordinary, ratio)
    is_masked = labels != -100
    assert is_masked.sum() == num_masked
    assert masked_input_ids[is_masked].eq(4).all()
    torch.testing.assert_close(masked_input_ids[~is_masked], input_ids[~is_masked])
    torch.testing.assert_close(labels[is_masked], input_ids[is_masked])


def test_special_and_padding_tokens_are_never_masked():
    for seed in range(20):
        input_ids, masked_input_ids, labels = mask(6, 1.0, seed)
        assert masked_input_ids.tolist() == [2, 4, 4, 4, 4, 4, 4, 3, 0, 0]
        assert labels.tolist() == [-100, *range(10, 16), -100, -100, -100]


def test_every_ordinary_token_is_masked_at_times_and_the_generator_decides():
    masks = torch.stack([mask(8, 0.5, seed)[2] != -100 for seed in range(60)])
    share = masks[:, 1:9].float().mean(0)
    assert (share > 0.25).all() and (share < 0.75).all()
    torch.testing.assert_close(mask(8, 0.5, 7)[1], mask(8, 0.5, 7)[1])


def test_each_report_of_a_batch_gets_its_own_share():
    input_ids = torch.arange(10, 22).view(2, 6)
    special_tokens_mask = torch.tensor([[1, 0, 0, 0, 0, 1], [1, 0, 0, 1, 1, 1]])
    labels = mask_report(input_ids, special_tokens_mask, 4, 0.5, make_generator())[1]
    assert (labels != -100).sum(-1).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(3), 4, 1.5), r"`ratio` must be in 0..1, got 1.5"),
        ((torch.zeros(3), torch.zeros(4), 4, 0.5), r"`special_tokens_mask` must have the shape .*\(3,\), got \(4,\)"),
    ],
)
def test_bad_masking_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_report(*arguments, make_generator())


def test_shuffling_keeps_the_sentences_and_changes_their_order():
    report = "One of 1.5 cm. Two. Three! Four. Five."
    shuffled = {shuffle_sentences(report, make_generator(seed)) for seed in range(10)}
    assert len(shuffled) > 5
    assert all(sorted(split_sentences(text)) == sorted(split_sentences(report)) for text in shuffled)
    assert shuffle_sentences(report, make_generator(3)) == shuffle_sentences(report, make_generator(3))
