import accelerate
import pytest
import torch
from trained import losses_of, train

from training import build
from training.watching import TRAINING_LOG, read_log


class Float16OnCpu(accelerate.Accelerator):
    """Autocast in float16 with torch's scaler on the CPU, where accelerate refuses it."""

    init_scale = 2.0**10

    def __init__(self, cpu: bool, mixed_precision: str, **kwargs):
        super().__init__(cpu=cpu, **kwargs)
        self.state._mixed_precision = mixed_precision
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=self.init_scale)


@pytest.mark.parametrize(
    ("mixed_precision", "device_type", "expected"),
    [("no", "cuda", ["highest"]), ("bf16", "cuda", ["high"]), ("fp16", "cuda", ["high"]), ("bf16", "cpu", [])],
)
def test_a_gpu_multiplies_float32_as_tf32_beside_a_half_precision_only(
    monkeypatch, mixed_precision, device_type, expected
):
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    build.set_product_precision(mixed_precision, device_type)
    assert chosen == expected


HALF = {"mixed_precision": "fp16", "num_epochs": 1, "warmup_epochs": 0}


def test_float16_with_a_scaler_trains_to_nearly_the_same_losses(mrm_run, work, monkeypatch):
    expected = losses_of(train(work, "alta", "float32", **(HALF | {"mixed_precision": "no"})))
    monkeypatch.setattr(build, "Accelerator", Float16OnCpu)
    rows = losses_of(train(work, "alta", "float16", **HALF))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=0.02)
    # Of the first step, whose weights are the same: the scale of the loss is taken out again.
    assert rows[0]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=0.02)
    assert rows != expected


def test_steps_that_overflow_are_skipped_and_the_learning_rate_waits(mrm_run, work, monkeypatch):
    monkeypatch.setattr(build, "Accelerator", Float16OnCpu)
    monkeypatch.setattr(Float16OnCpu, "init_scale", 2.0**60)
    run = train(work, "alta", "overflow", **HALF)
    rows = read_log(run / TRAINING_LOG)
    assert {(row["overflow_share"], row["gradient_norm"]) for row in rows} == {(1.0, 0.0)}
    assert len({(row["learning_rate"], row["adapter_norm"]) for row in rows}) == 1
    assert (run / "metrics.json").is_file()


def test_float16_is_refused_on_a_cpu_where_accelerate_would_train_in_float32(mrm_run, work):
    with pytest.raises(ValueError, match="`mixed_precision` must be bf16 or no on a CPU, got fp16"):
        train(work, "alta", "refused", **HALF)
