"""FLOP counts against counts by hand; the peak and the share of it."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.flops import FORMULAS, count_flops, matmul_peak, utilisation
from modeling_alta import AltaModel
from tests.tiny import make_config


def test_linear_counts_two_flops_a_multiply_add():
    weight, tokens = torch.randn(5, 4), torch.randn(3, 4)
    assert count_flops(lambda: F.linear(tokens, weight)) == 2 * 3 * 4 * 5


def test_gradients_of_input_and_weight_cost_a_forward_each():
    weight, tokens = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    assert count_flops(lambda: F.linear(tokens, weight).sum().backward()) == 3 * (2 * 3 * 4 * 5)


def test_frozen_weight_costs_no_gradient():
    weight, tokens = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True)
    assert count_flops(lambda: F.linear(tokens, weight).sum().backward()) == 2 * (2 * 3 * 4 * 5)


def attention(fused):
    tokens = torch.randn(2, 3, 7, 4, requires_grad=True)  # 2 samples, 3 heads, 7 tokens of size 4
    if fused:
        F.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()
    else:
        ((tokens @ tokens.mT).softmax(-1) @ tokens).sum().backward()


@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_the_same_fused_or_not(fused):
    # 2 products of 7 x 4 x 7 in each of 6 heads forward, 4 backward.
    assert count_flops(lambda: attention(fused)) == 6 * (2 + 4) * (2 * 7 * 4 * 7)


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_fused_gradients_of_a_gpu_count_as_those_of_a_cpu(kernel):
    states = [torch.empty(2, 3, 7, 8)] * 4
    backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention_backward")
    of_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    # Four products of 7 × 7 × 8 in two studies of three heads.
    assert FORMULAS[backward](*states, out_val=None) == FORMULAS[of_cpu](*states, out_val=None) == 4 * 2 * 6 * 392


def test_gradients_taken_inside_the_counted_pass_count():
    weight, tokens = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True)
    assert count_flops(lambda: torch.autograd.grad(F.linear(tokens, weight).sum(), tokens)) == 2 * (2 * 3 * 4 * 5)


def test_layers_count_without_autograd_too():
    tokens = torch.randn(3, 4)
    with torch.inference_mode():
        assert count_flops(lambda: torch.nn.Linear(4, 5)(tokens)) == 2 * 3 * 4 * 5


def test_encoding_counts_what_a_hand_count_gives():
    model = AltaModel(make_config()).eval()
    # Hidden 32, adapters 8, 16 patches of 8 x 8 x 3 and a class token, 2 blocks; projection 32 to 16 to 16.
    patches = 16 * 192 * 32
    linear = 17 * (32 * 96 + 32 * 32 + 32 * 8 * 2 + 32 * 128 * 2 + 32 * 8 * 2)
    expected = 2 * (patches + 2 * (linear + 2 * 17 * 17 * 32) + 32 * 16 + 16 * 16)
    with torch.no_grad():
        assert count_flops(lambda: model.get_image_features(torch.randn(1, 3, 32, 32))) == expected


def test_utilisation_is_the_share_of_the_peak():
    assert utilisation(flops=300, seconds=2.0, peak=200.0) == 0.75


def test_peak_of_the_machine_is_positive():
    assert matmul_peak(torch.float32, size=64, rounds=2) > 0
