"""A batch of eight by gradient caching, in as many processes as there are: arguments are the number of parts of each
process, `missing_views` and the folder for `result.pt`."""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny import make_batch, make_config, randomise

from modeling_alta import AltaForPreTraining
from training.gradient_cache import backward_in_parts


LOSSES = (
    *("loss", "global_contrastive_loss", "local_contrastive_loss"),
    *("image_reconstruction_loss", "masked_report_loss"),
)


def build_model(missing_views: str) -> AltaForPreTraining:
    torch.manual_seed(0)
    model = AltaForPreTraining(make_config(missing_views=missing_views)).eval()
    model.freeze_pretrained()
    return randomise(model)


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def run_in_parts(num_parts: int, missing_views: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses and gradients of a batch of eight, of which this process has its share in parts."""
    accelerator = Accelerator(cpu=True)
    model = build_model(missing_views)
    wrapped = accelerator.prepare(model)
    size = 8 // accelerator.num_processes // num_parts
    first = accelerator.process_index * num_parts
    parts = [cut(make_batch(8), size, first + part) for part in range(num_parts)]

    def synchronize(is_last: bool):
        return nullcontext() if is_last else accelerator.no_sync(wrapped)

    output = backward_in_parts(accelerator, wrapped, model.config, parts, lambda part: None, synchronize)
    losses = {name: accelerator.reduce(output[name], reduction="mean") for name in LOSSES}
    return losses, gradients_of(model)


def cut(batch: dict[str, torch.Tensor], size: int, part: int) -> dict[str, torch.Tensor]:
    """A part of a batch, its reports padded to the longest of the part alone."""
    rows = {name: value[part * size : (part + 1) * size] for name, value in batch.items()}
    longest = int(rows["attention_mask"].sum(1).max())
    reports = ("input_ids", "attention_mask", "masked_input_ids", "labels")
    return {name: value[:, :longest] if name in reports else value for name, value in rows.items()}


if __name__ == "__main__":
    result = run_in_parts(int(sys.argv[1]), sys.argv[2])
    if Accelerator(cpu=True).is_main_process:
        torch.save(result, Path(sys.argv[3]) / "result.pt")
