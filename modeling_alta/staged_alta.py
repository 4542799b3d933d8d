"""Losses whose gradients are taken as soon as they are computed: their graphs never stand beside each other."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def staged_loss(
    function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], modules: Iterable[nn.Module]
) -> torch.Tensor:
    """`function(*inputs)`, a scalar whose graph is freed at once; its gradients are kept for the backward pass.

    It is a plain call where nothing wants gradients, while compiling, in float16 (whose gradients vanish before the
    scaler of the loss is applied), and with parameters that are sharded between processes.

    Args:
        function (`Callable`): differentiable in `inputs` and in the trained parameters of `modules` alone.
        inputs (`tuple` of `torch.Tensor`).
        modules (iterable of `nn.Module`): whose parameters `function` uses.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _is_float16(inputs[0].device.type):
        return function(*inputs)
    modules = list(modules)
    parameters = list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))
    if any(_is_sharded(parameter) for parameter in parameters) or any(_has_fsdp_inside(module) for module in modules):
        return function(*inputs)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not any(source.requires_grad for source in (*inputs, *trained)):
        return function(*inputs)
    return _StagedLoss.apply(function, len(inputs), *inputs, *trained)


class _StagedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, num_inputs, *tensors):
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors[:num_inputs]]
        with torch.enable_grad():
            loss = function(*inputs)
        sources = [*inputs, *tensors[num_inputs:]]
        wanted = [index for index, source in enumerate(sources) if source.requires_grad]
        given = torch.autograd.grad(loss, [sources[index] for index in wanted], allow_unused=True)
        ctx.gradients = [None] * len(sources)
        for index, gradient in zip(wanted, given, strict=True):
            ctx.gradients[index] = gradient
        return loss.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        return None, None, *(None if gradient is None else scale * gradient for gradient in ctx.gradients)


def _is_float16(device_type: str) -> bool:
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16


def _is_sharded(parameter: nn.Parameter) -> bool:
    # FSDP2's DTensors lie on a `device_mesh`, and DeepSpeed's third stage marks what it shards by `ds_id`.
    return hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id")


def _has_fsdp_inside(module: nn.Module) -> bool:
    # Both FSDPs put whole parameters in the place of their shards while they are used. The second one's units have an
    # `unshard`; the first one marks all that is inside its units.
    return any(hasattr(part, "unshard") or hasattr(part, "_is_fsdp_managed_module") for part in module.modules())


__all__ = ["staged_loss"]
