"""What the engines of `engines/*.yaml` need beside `accelerator.prepare`: DDP, FSDP2 and DeepSpeed ZeRO."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from recipes.recipe import TrainArguments


SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
ASKED_FOR_BY = {"ACCELERATE_USE_FSDP": DistributedType.FSDP, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}


def check_engine(accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: if the config file of the launch asks for an engine that this machine cannot run: accelerate would
            train by DDP without a word.
    """
    for name, engine in ASKED_FOR_BY.items():
        if os.environ.get(name) == "true" and accelerator.distributed_type != engine:
            raise ValueError(
                f"`--config_file` must name an engine for this machine, got one for {engine.value}, which accelerate "
                f"runs on GPUs alone; on {accelerator.device.type} take engines/ddp.yaml."
            )


def prepare_for_engine(
    args: TrainArguments, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """
    Wrap model and optimizer for the engine.

    Raises:
        ValueError: for a recipe that the engine cannot train.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _set_deepspeed(args, accelerator.deepspeed_plugin.deepspeed_config)
    if accelerator.is_fsdp2:
        # Autocast, which accelerate leaves out here: FSDP's own precision would round losses and scales as well.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
        model.forward = accelerator.autocast()(model.forward)
    model, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp import register_fsdp_forward_method

        for name in ("get_image_features", "get_text_features"):
            if hasattr(model, name):
                register_fsdp_forward_method(model, name)
    return model, optimizer


@contextmanager
def without_exchange(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """A backward pass that only adds to the gradients: more of them come before the step of the optimizer."""
    # DeepSpeed takes its step inside of `accelerator.backward`, unless told that more gradients come.
    accelerator.sync_gradients = False
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        accelerator.sync_gradients = True


def _set_deepspeed(args: TrainArguments, config: dict) -> None:
    """Put into DeepSpeed's settings what the recipe decides."""
    if args.mixed_precision == "fp16":
        raise ValueError("`mixed_precision` must be no or bf16 under DeepSpeed, whose scaler is its own, got fp16.")
    config["train_micro_batch_size_per_gpu"] = args.micro_batch_size or args.batch_size
    config["gradient_clipping"] = args.max_gradient_norm or 0.0
    # Autocast over weights in float32, as under DDP, in the place of a model in bfloat16.
    config["bf16"] = {"enabled": False}
    config["torch_autocast"] = {"enabled": args.mixed_precision == "bf16", "dtype": "bfloat16"}


def holds_frozen_in_half(accelerator: Accelerator) -> bool:
    """Whether frozen matrices lie in the precision of autocast, which spares their cast in every step.

    Where parameters are sharded they keep one dtype.
    """
    return accelerator.mixed_precision in ("bf16", "fp16") and accelerator.distributed_type not in SHARDED


__all__ = ["SHARDED", "check_engine", "holds_frozen_in_half", "prepare_for_engine", "without_exchange"]
