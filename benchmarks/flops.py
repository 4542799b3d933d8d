"""FLOPs as the code runs them, the matmul peak of the machine, and the share of it that a run reaches.

A multiply-add counts 2. Counted are matrix products, convolutions and attention, forward and backward, as torch
dispatches them; element-wise work counts nothing, as in every published figure. torch's own counter misses the fused
attention of CPUs, so its formula is added here.
"""

import time
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    """FLOPs of query · key and weights · value, from shapes `(batch, heads, tokens, head_size)`."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_backward_flops(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """Twice the forward: the four products that gradients need. The fused backward's recomputation is left out, so
    that attention counts the same however it is computed."""
    return 2 * attention_flops(query, key, value)


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of one call of `function`, of the backward passes in it too.

    Args:
        function (`Callable`): takes nothing; a forward pass, or a whole train step.
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops()


@torch.inference_mode()
def matmul_peak(dtype: torch.dtype, size: int = 2048, rounds: int = 5) -> float:
    """FLOPs per second of a large matrix product with the threads that torch has now, the best of `rounds`.

    Call it between the rounds of what is measured against it, so that both see the same machine.
    """
    left, right = torch.randn(2, size, size).to(dtype).unbind()
    left @ right  # the first product also plans
    return 2 * size**3 / min(_seconds(lambda: left @ right) for _ in range(rounds))


def utilisation(flops: int, seconds: float, peak: float) -> float:
    """Share of the matmul peak that a run reached: FLOPs over seconds over `peak` in FLOPs per second."""
    return flops / seconds / peak


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


__all__ = ["count_flops", "matmul_peak", "utilisation"]
