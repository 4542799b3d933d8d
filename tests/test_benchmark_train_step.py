import pytest
import torch
from tiny import make_config

from benchmarks import local_loss
from benchmarks.local_loss import run_form
from benchmarks.plain_form import plain_losses
from benchmarks.train_step import LOSSES, VIEWS, make_batch


@pytest.mark.parametrize("missing_views", ["token", "skip"])
def test_plain_form_gives_our_losses_and_gradients(tiny_pretraining_model, tiny_batch, missing_views):
    model, results = tiny_pretraining_model, []
    model.config.missing_views = missing_views
    tiny_batch["view_mask"] |= missing_views == "skip"  # the plain form computes every slot
    for losses in (plain_losses(model, tiny_batch), model(**tiny_batch)):
        model.zero_grad()
        losses["loss"].backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append(([losses[name].detach() for name in LOSSES], gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    for name, gradient in results[1][1].items():
        assert (results[0][1][name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("views", VIEWS)
def test_batches_hold_the_views_and_lengths_asked_for(views):
    batch = make_batch(make_config(max_report_length=128), num_studies=8, mean_length=90, views=views)
    assert batch["view_mask"].sum() == (32 if views == "all" else 16)
    assert batch["view_mask"][:, :2].any(1).all()
    assert batch["attention_mask"].sum(1).float().mean() == 90
    assert 0.4 < (batch["labels"] != -100).sum() / batch["attention_mask"].sum() < 0.6


def test_half_of_the_views_are_half_of_each_slot():
    batch = make_batch(make_config(max_report_length=128), num_studies=8, mean_length=54, views="half")
    assert batch["view_mask"].sum(0).tolist() == [4, 4, 4, 4]


def test_local_loss_in_the_benchmark_is_one_in_both_forms():
    torch.manual_seed(0)
    inputs = [torch.randn(3, number, 8).requires_grad_() for number in (5, 6)] + [
        torch.tensor(2.0, requires_grad=True) for _ in range(3)
    ]
    for lengths in ([5, 5, 5], [5, 2, 3]):
        word_mask = torch.arange(5) < torch.tensor(lengths)[:, None]
        torch.testing.assert_close(run_form("plain", word_mask, *inputs), run_form("ours", word_mask, *inputs))


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--dtype", "tf32"], "is for GPUs"), (["--device", "cuda"], "torch finds none here")]
)
def test_a_local_loss_that_cannot_be_measured_is_an_error(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["local_loss", *arguments])
    with pytest.raises(SystemExit):
        local_loss.main()
    assert message in capsys.readouterr().err
