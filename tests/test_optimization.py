from types import SimpleNamespace

import pytest
import torch

from training.optimization import build_optimizer, build_scheduler


def optimizer_of(model, mixed_precision="no"):
    args = SimpleNamespace(
        batch_size=16,
        gradient_accumulation_steps=2,
        base_learning_rate=1e-3,
        weight_decay=0.05,
        betas=[0.9, 0.95],
        mixed_precision=mixed_precision,
    )
    return build_optimizer(args, model, num_processes=4)


def test_weight_decay_is_on_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    model.token = torch.nn.Parameter(torch.zeros(1, 1, 2))
    decayed, plain = optimizer_of(model).param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert (len(plain["params"]), plain["weight_decay"], decayed["weight_decay"]) == (4, 0.0, 0.05)
    assert decayed["lr"] == pytest.approx(1e-3 * 16 * 4 * 2 / 256)


@pytest.mark.parametrize(("mixed_precision", "fused"), [("no", True), ("bf16", True), ("fp16", None)])
def test_the_fused_step_is_taken_but_for_float16_where_torch_chooses(mixed_precision, fused):
    assert optimizer_of(torch.nn.Linear(3, 2), mixed_precision).defaults["fused"] is fused


def test_learning_rate_warms_up_and_falls_to_zero_at_the_end_of_the_schedule():
    args = SimpleNamespace(warmup_epochs=1, schedule_epochs=3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(args, optimizer, steps_per_epoch=4)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # Warm-up over 4 steps, half of the cosine at 4 + 8 / 2, zero at 12.
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert rates[8] == pytest.approx(0.5)
    assert scheduler.get_last_lr()[0] == pytest.approx(0)
