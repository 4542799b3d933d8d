import pytest
import torch
from tiny import make_batch, make_config, randomise
from torch.nn.functional import cosine_similarity, cross_entropy
from trained import finish, start_python, torchrun

from modeling_alta import AltaForPreTraining, blockwise_similarity_alta
from modeling_alta.losses_alta import (
    global_contrastive_loss,
    image_reconstruction_loss,
    local_contrastive_loss,
    masked_report_loss,
)
from modeling_alta.similarity_alta import local_similarity


SCALES = tuple(torch.tensor(value) for value in (2.0, 3.0, 5.0))


def local_inputs(num_studies=3, num_words=5, num_patches=7, size=4):
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(num_studies, num_words, size, generator=generator)
    patches = torch.randn(num_studies, num_patches, size, generator=generator)
    word_mask = torch.arange(num_words) < torch.tensor([5, 2, 3])[:, None]
    patch_mask = torch.ones(num_studies, num_patches, dtype=torch.bool)
    patch_mask[1, [0, 3]] = patch_mask[2, [1, 2, 5]] = False  # the patches of an absent view stand between others
    return words, word_mask, patches, patch_mask


def similarity_by_loop(words, word_mask, patches, patch_mask, attention_scale, pooling_scale):
    """The definition, one report and one study at a time."""
    rows = []
    for w, wm in zip(words, word_mask, strict=True):
        row = []
        for p, pm in zip(patches, patch_mask, strict=True):
            present_words, present_patches = w[wm], p[pm]
            attention = (present_patches @ present_words.T).softmax(dim=1)
            attention = (attention_scale * attention.T).softmax(dim=1)
            context = attention @ present_patches
            row.append((pooling_scale * cosine_similarity(present_words, context)).exp().sum().log())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_local_similarity_is_its_definition_word_by_word():
    inputs = local_inputs()
    torch.testing.assert_close(local_similarity(*inputs, *SCALES[:2]), similarity_by_loop(*inputs, *SCALES[:2]))


@pytest.mark.parametrize("block_scores", [1, 40, 100, 2**20])
def test_gradients_of_the_local_similarity_are_those_of_its_definition_in_blocks_of_any_size(
    monkeypatch, block_scores
):
    monkeypatch.setattr(blockwise_similarity_alta, "CPU_BLOCK_SCORES", block_scores)
    words, word_mask, patches, patch_mask = local_inputs()
    results = []
    for similarity_of in (local_similarity, similarity_by_loop):
        trained = [value.clone().requires_grad_() for value in (words, patches, *SCALES[:2])]
        similarity = similarity_of(trained[0], word_mask, trained[1], patch_mask, *trained[2:])
        similarity.square().sum().backward()
        results.append((similarity, *(value.grad for value in trained)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("is_masked", [False, True])
def test_gradients_of_the_local_similarity_are_its_slopes(monkeypatch, is_masked):
    monkeypatch.setattr(blockwise_similarity_alta, "CPU_BLOCK_SCORES", 40)
    words, word_mask, patches, patch_mask = local_inputs()
    word_mask, patch_mask = word_mask | (not is_masked), patch_mask | (not is_masked)
    trained = [value.double().requires_grad_() for value in (words, patches, *SCALES[:2])]
    assert torch.autograd.gradcheck(lambda w, p, *s: local_similarity(w, word_mask, p, patch_mask, *s), trained)


def test_gradients_of_the_local_similarity_are_in_float32_where_they_are_asked_for_under_autocast():
    words, word_mask, patches, patch_mask = local_inputs()
    trained = [value.clone().requires_grad_() for value in (words, patches, *SCALES[:2])]
    similarity = local_similarity(trained[0], word_mask, trained[1], patch_mask, *trained[2:])
    expected = torch.autograd.grad(similarity.sum(), trained, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        given = torch.autograd.grad(similarity.sum(), trained)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_local_similarity_of_as_many_reports_as_come_to_a_process():
    words, word_mask, patches, patch_mask = local_inputs()
    whole = local_similarity(words, word_mask, patches, patch_mask, *SCALES[:2])
    part = local_similarity(words[:2], word_mask[:2], patches, patch_mask, *SCALES[:2])
    torch.testing.assert_close(part, whole[:2])


def test_local_loss_is_symmetric_cross_entropy_of_the_scaled_similarity():
    inputs = local_inputs()
    logits = SCALES[2] * similarity_by_loop(*inputs, *SCALES[:2])
    target = torch.arange(3)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(local_contrastive_loss(*inputs, *SCALES), expected)


def test_local_loss_prefers_matching_pairs():
    words = torch.eye(3)[:, None].repeat(1, 2, 1)
    mask = torch.ones(3, 2, dtype=torch.bool)
    matched = local_contrastive_loss(words, mask, words, mask, *SCALES)
    assert matched < local_contrastive_loss(words, mask, words.roll(1, 0), mask, *SCALES)


def test_local_loss_runs_in_float32_under_autocast():
    words, word_mask, patches, patch_mask = local_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = local_contrastive_loss(words, word_mask, patches, patch_mask, *SCALES)
    torch.testing.assert_close(loss, local_contrastive_loss(words, word_mask, patches, patch_mask, *SCALES))


def test_global_loss_of_orthogonal_pairs():
    # Cosines are the identity, so every row has the loss log(1 + 2 exp(-scale)).
    embeds = torch.eye(3)
    loss = global_contrastive_loss(embeds, embeds, torch.tensor(2.0))
    torch.testing.assert_close(loss, torch.log1p(2 * torch.exp(torch.tensor(-2.0))))


def test_global_loss_runs_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.nn.functional.normalize(torch.randn(2, 8, 16, generator=generator), dim=-1)
    expected = global_contrastive_loss(images, texts, torch.tensor(50.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert global_contrastive_loss(images, texts, torch.tensor(50.0)) == expected


def test_image_loss_is_the_mean_over_all_patches_of_the_batch():
    predicted, target = torch.zeros(1, 2, 4), torch.tensor([[[1.0] * 4, [3.0] * 4]])
    assert image_reconstruction_loss(predicted, target, norm_pix_loss=False) == 5


def test_image_loss_normalises_patches_by_their_unbiased_variance():
    # Mean 1 and unbiased variance 2 of (0, 2): the target is ∓1/√2, so a prediction of 0 costs 1/2.
    target = torch.tensor([[[0.0, 2.0]]])
    loss = image_reconstruction_loss(torch.zeros(1, 1, 2), target, norm_pix_loss=True)
    torch.testing.assert_close(loss, torch.tensor(0.5))


def test_report_loss_is_the_mean_over_masked_tokens_and_zero_without_any():
    logits = torch.tensor([[0.0, 0.0], [0.0, torch.log(torch.tensor(3.0))]])
    # −log(1/2) and −log(3/4)
    expected = (torch.log(torch.tensor(2.0)) + torch.log(torch.tensor(4 / 3))) / 2
    torch.testing.assert_close(masked_report_loss(logits, torch.tensor([0, 1])), expected)
    assert masked_report_loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)) == 0


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """Losses and gradients of two processes with four studies each, by `missing_views`."""
    folder = tmp_path_factory.mktemp("processes")
    finish(start_python([*torchrun(2), "tests/run_losses_in_processes.py", folder, "token", "skip"]))
    return {name: torch.load(folder / f"{name}.pt") for name in ("token", "skip")}


@pytest.mark.parametrize("missing_views", ["token", "skip"])
def test_two_processes_of_four_studies_train_as_one_of_eight(of_two_processes, missing_views):
    torch.manual_seed(0)
    model = AltaForPreTraining(make_config(missing_views=missing_views)).eval()
    model.freeze_pretrained()
    output = randomise(model)(**make_batch(8))
    output.loss.backward()
    got = of_two_processes[missing_views]
    for name, loss in got["losses"].items():
        torch.testing.assert_close(loss, output[name].detach(), rtol=1e-5, atol=1e-6)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (got["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
