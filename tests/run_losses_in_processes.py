"""One training step of `AltaForPreTraining` in each process of a distributed run, on its half of a batch of eight.

Arguments: folder for `<missing_views>.pt`, and values of `missing_views`. The halves are padded to different lengths.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import make_batch, make_config, randomise
from torch.nn.parallel import DistributedDataParallel

from modeling_alta import AltaForPreTraining


LOSSES = ("global_contrastive_loss", "local_contrastive_loss", "image_reconstruction_loss", "masked_report_loss")


def my_half(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rank = dist.get_rank()
    half = {name: value[4 * rank : 4 * rank + 4] for name, value in batch.items()}
    longest = int(half["attention_mask"].sum(1).max()) + rank
    for name in ("input_ids", "attention_mask", "masked_input_ids", "labels"):
        half[name] = half[name][:, :longest]
    return half


def step(folder: str, missing_views: str) -> None:
    torch.manual_seed(0)
    model = AltaForPreTraining(make_config(missing_views=missing_views)).eval()
    model.freeze_pretrained()
    model = DistributedDataParallel(randomise(model))
    output = model(**my_half(make_batch(8)))
    output.loss.backward()
    losses = {name: output[name].detach() for name in ("loss", *LOSSES)}
    for loss in losses.values():
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    if dist.get_rank() == 0:
        torch.save({"losses": losses, "gradients": gradients}, Path(folder) / f"{missing_views}.pt")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for missing_views in sys.argv[2:]:
        step(sys.argv[1], missing_views)
    dist.destroy_process_group()
