"""A recipe to a run that is ready to train."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from torch import nn

from modeling_alta.adapters_alta import cast_frozen_matrices
from processing.batches.batch_order import BatchOrder
from processing.records.record_files import records_fingerprint
from recipes.recipe import TrainArguments
from training.alta_stage import AltaStage
from training.classify_stage import ClassifyStage
from training.engines import check_engine, holds_frozen_in_half, prepare_for_engine
from training.mrm_stage import MrmStage
from training.optimization import build_optimizer, build_scheduler
from training.run import Run, TrainProgress
from training.stage import base_config, training_records
from training.weights import frozen_sha256, register_trained_weights


STAGES = {"mrm": MrmStage, "alta": AltaStage, "adapt": AltaStage, "classify": ClassifyStage}

COMPILED_FORMS = 32
HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_run(args: TrainArguments) -> Run:
    """Everything that the training loop works on, prepared for the engine under which the process was launched."""
    accelerator = build_accelerator(args)
    set_seed(args.seed)
    stage = STAGES[args.stage]()
    model, processor = stage.build_model(args, accelerator)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if args.torch_compile:
        compile_blocks(model)
    studies, collator = stage.build_studies(args, base_config(model), processor, training_records(args), args.augment)
    order = build_order(args, accelerator, studies)
    frozen = frozen_sha256(model)
    optimizer = build_optimizer(args, model, accelerator.num_processes)
    scheduler = build_scheduler(args, optimizer, len(order) // args.batches_per_step)
    register_trained_weights(accelerator, model)
    if holds_frozen_in_half(accelerator):
        cast_frozen_matrices(model, HALF_DTYPES[args.mixed_precision])
    model, optimizer = prepare_for_engine(args, accelerator, model, optimizer)
    progress = TrainProgress()
    accelerator.register_for_checkpointing(scheduler, progress)
    parts = (accelerator, stage, model, processor, studies, collator, order, optimizer, scheduler, progress, frozen)
    return Run(args, *parts, records_fingerprint(args.records, args.split))


def build_accelerator(args: TrainArguments) -> Accelerator:
    """
    Raises:
        ImportError: if the package of the tracker is not installed: accelerate only warns, and the run would go on
            unwatched.
        ValueError: if the launch asks for an engine that needs a GPU, or the recipe for float16, and there is none.
    """
    trackers = args.log_with.split(",") if args.log_with else []
    accelerator = Accelerator(
        # Without it, two processes on a machine without an accelerator would train apart, each as if alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=args.output_dir),
        # DDP would regroup gradients after its first step, and a resumed run add them up in another order.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    check_engine(accelerator)
    if args.mixed_precision == "fp16" and accelerator.scaler is None and accelerator.device.type == "cpu":
        raise ValueError("`mixed_precision` must be bf16 or no on a CPU, got fp16.")
    set_product_precision(args.mixed_precision, accelerator.device.type)
    if trackers:
        accelerator.init_trackers("tracking")
        running = {"all", *(tracker.name for tracker in accelerator.trackers)}
        missing = [name for name in trackers if name not in running]
        if missing:
            raise ImportError(f"`log_with` needs the package of {missing[0]}: pip install {missing[0]}")
    return accelerator


def set_product_precision(mixed_precision: str, device_type: str) -> None:
    """Let a GPU multiply float32 as TF32 beside a half precision: what is left in float32 then, the contrastive
    losses, starts from what was computed in that half precision, of which TF32 keeps every digit."""
    if device_type == "cuda":
        torch.set_float32_matmul_precision("highest" if mixed_precision == "no" else "high")


def build_order(args: TrainArguments, accelerator: Accelerator, studies) -> BatchOrder:
    """
    Raises:
        ValueError: if there are fewer studies than a step of the optimizer takes.
    """
    needed = args.batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    if len(studies) < needed:
        raise ValueError(
            f"`batch_size` {args.batch_size} on {accelerator.num_processes} processes with "
            f"`gradient_accumulation_steps` {args.gradient_accumulation_steps} takes {needed} studies a step; "
            f"{args.split} has {len(studies)}."
        )
    return BatchOrder(
        len(studies),
        args.micro_batch_size or args.batch_size,
        args.seed,
        accelerator.num_processes,
        accelerator.process_index,
        args.batches_per_step,
        row_groups=studies.row_groups,
        num_workers=args.num_workers,
    )


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """
    Compile every transformer block alone: the blocks of a tower share one graph, and shapes may vary.

    Args:
        model (`nn.Module`): its blocks compile at their first call.
        backend (`str`): as for `torch.compile`.
    """
    # Training, validation and the two passes of gradient caching each need graphs of their own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_FORMS)
    # Scales and rates of dropout never change; as symbols, which `dynamic` makes of them, they cost a second trace.
    torch._dynamo.config.specialize_float = True
    for module in model.modules():
        if type(module).__name__ in ("AltaBlock", "BertLayer"):
            module.compile(dynamic=True, backend=backend)


__all__ = ["STAGES", "build_accelerator", "build_run", "compile_blocks", "set_product_precision"]
