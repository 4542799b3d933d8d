"""FLOPs as the code runs them, the matmul peak of the machine, and the share of it that a run reaches.

A multiply-add counts 2. Counted are matrix products, convolutions and attention, forward and backward, as torch
dispatches them; element-wise work counts nothing, as in every published figure. torch's own formulas miss the fused
attention of CPUs, and count what that of GPUs computes again; here both count as any other.
"""

import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    """FLOPs of query · key and weights · value, from shapes `(batch, heads, tokens, head_size)`."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_backward_flops(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """Twice the forward: the four products that gradients need. The fused backward's recomputation is left out, so
    that attention counts the same however it is computed."""
    return 2 * attention_flops(query, key, value)


FORMULAS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(attention_flops),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(attention_backward_flops),
    torch.ops.aten._scaled_dot_product_flash_attention_backward: shape_wrapper(attention_backward_flops),
    torch.ops.aten._scaled_dot_product_efficient_attention_backward: shape_wrapper(attention_backward_flops),
    torch.ops.aten._scaled_dot_product_cudnn_attention_backward: shape_wrapper(attention_backward_flops),
}


class FlopCount(TorchDispatchMode):
    """Adds up the FLOPs of what torch dispatches.

    torch's own `FlopCounterMode` also follows the modules, which fails where a forward pass takes gradients itself.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None and func.namespace == "aten":
            with self:  # what counts may be inside, as a product is in a linear layer under `inference_mode`
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=result) if formula else 0
        return result


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of one call of `function`, of the backward passes in it too.

    Args:
        function (`Callable`): takes nothing; a forward pass, or a whole train step.
    """
    with FlopCount() as count:
        function()
    return count.total


@torch.inference_mode()
def matmul_peak(
    dtype: torch.dtype,
    size: int = 2048,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    device: str = "cpu",
) -> float:
    """FLOPs per second of a large matrix product, on a CPU with the threads that torch has now, the best of `rounds`.

    Call it between the rounds of what is measured against it, so that both see the same machine.
    """
    left, right = torch.randn(2, size, size, device=device).to(dtype).unbind()
    product = synchronized(lambda: left @ right, device)
    product()  # the first one also plans
    return 2 * size**3 / min(time_call(product, clock) for _ in range(rounds))


def utilisation(flops: int, seconds: float, peak: float) -> float:
    """Share of the matmul peak that a run reached: FLOPs over seconds over `peak` in FLOPs per second."""
    return flops / seconds / peak


def time_call(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    function()
    return clock() - start


def synchronized(function: Callable[[], Any], device: str) -> Callable[[], Any]:
    """`function`, which now returns when the device is through with its work, for whoever takes the time."""

    def run() -> Any:
        result = function()
        if device != "cpu":
            torch.accelerator.synchronize()
        return result

    return run


def cpu_features() -> list[str]:
    """The vector and matrix instructions of this CPU that decide its peak (Linux on x86)."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text().split()) if path.exists() else set()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in words]


__all__ = ["count_flops", "cpu_features", "matmul_peak", "synchronized", "time_call", "utilisation"]
