import json
import shutil

import pytest
import torch
from run_gradient_cache_in_processes import LOSSES, build_model, cut, gradients_of, run_in_parts
from tiny import make_batch
from trained import finish, losses_of, settings_of, start_python, start_training, torchrun, train, write_recipe

from modeling_alta import modeling_alta
from modeling_alta.losses_alta import local_contrastive_loss
from modeling_alta.modeling_alta import contrastive_losses
from training.gradient_cache import PER_STUDY, _contrast, join_embeds


def assert_like_the_whole_batch(result, missing_views):
    """Losses and gradients equal those of the eight studies in one piece."""
    losses, gradients = result
    model = build_model(missing_views)
    output = model(**make_batch(8))
    output.loss.backward()
    for name in LOSSES:
        torch.testing.assert_close(losses[name], output[name].detach(), rtol=1e-5, atol=1e-6)
    expected = gradients_of(model)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("missing_views", ["token", "skip"])
@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(num_parts, missing_views):
    assert_like_the_whole_batch(run_in_parts(num_parts, missing_views), missing_views)


def test_two_processes_with_two_parts_each_give_the_gradients_of_the_whole(tmp_path):
    finish(start_python([*torchrun(2), "tests/run_gradient_cache_in_processes.py", "2", "skip", tmp_path]))
    assert_like_the_whole_batch(torch.load(tmp_path / "result.pt"), "skip")


def test_joined_embeddings_are_those_of_the_whole_batch():
    model, batch = build_model("skip"), make_batch(8)
    with torch.no_grad():
        whole = model(**batch)
        joined = join_embeds([model(**cut(batch, 2, part), contrast=False) for part in range(4)])
    expected = torch.stack([whole.global_contrastive_loss, whole.local_contrastive_loss])
    torch.testing.assert_close(torch.stack(contrastive_losses(joined)), expected)


@pytest.mark.parametrize("local_dtype", [torch.float32, torch.bfloat16])
def test_gradients_at_half_embeddings_are_kept_in_float32_and_the_local_loss_gets_the_dtype_of_the_model(
    local_dtype, monkeypatch
):
    given, model = [], build_model("skip")

    def watch(words, *rest):
        given.append(words.dtype)
        return local_contrastive_loss(words, *rest)

    monkeypatch.setattr(modeling_alta, "local_contrastive_loss", watch)
    with torch.no_grad():
        joined = join_embeds([model(**make_batch(8), contrast=False)])
    for name in PER_STUDY:
        joined[name] = joined[name].half()
    _, cache = _contrast(model.config, joined, local_dtype)
    assert given == [local_dtype] and {gradient.dtype for gradient in cache.values()} == {torch.float32}
    assert cache["image_embeds"].abs().max() > 0


def test_a_run_has_the_same_losses_however_a_step_is_split(mrm_run, work, tmp_path):
    shutil.copytree(work / "text", tmp_path / "text")
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "text" / "config.json").write_text(json.dumps(config))
    start = {"mrm": f"{work}/mrm/model", "records": f"{work}/records", "text_encoder": f"{tmp_path}/text"}
    expected = losses_of(train(tmp_path, "alta", "whole", **start))
    in_parts = losses_of(train(tmp_path, "alta", "parts", micro_batch_size=2, **start))
    settings = settings_of(tmp_path, "alta", "processes", **start) | {"batch_size": 4, "micro_batch_size": 2}
    finish(start_training(write_recipe(tmp_path / "recipe.yaml", settings), num_processes=2))
    for rows in (in_parts, losses_of(tmp_path / "processes")):
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        for row, other in zip(rows, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-3)
