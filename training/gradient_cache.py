"""Contrast over more studies than fit into memory at once.

The batch is embedded in parts without gradients, the contrastive losses of the whole batch give the gradients at the
embeddings, and a second pass over the parts carries these into the weights (Gao et al., "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup", RepL4NLP 2021). The gradients are those of the batch in one piece.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from modeling_alta import AltaConfig, AltaForPreTrainingOutput
from modeling_alta.modeling_alta import contrastive_losses, weigh_losses


# What the contrastive losses read of a part of the batch; the scales are the same in every part.
PER_STUDY = ("image_embeds", "text_embeds", "word_embeds", "patch_embeds")
MASKS = ("word_mask", "patch_mask")


def backward_in_parts(
    accelerator: Accelerator,
    model: nn.Module,
    config: AltaConfig,
    parts: list[dict[str, torch.Tensor]],
    seed_forward: Callable[[int], None],
    synchronize: Callable[[bool], AbstractContextManager],
    loss_scale: float = 1.0,
) -> AltaForPreTrainingOutput:
    """
    Add the gradients of a batch that is given in parts.

    Args:
        accelerator (`Accelerator`): scales the losses and knows the other processes, each with as many parts.
        model (`nn.Module`): `AltaForPreTraining`, wrapped by PEFT and the engine.
        config (`AltaConfig`): whose weights of the losses count.
        parts (`list[dict]`): inputs of the model, on the host; each is on the device only while it is used.
        seed_forward (callable): called with the number of a part before each of its two passes, so that dropout and
            masks are the same in both.
        synchronize (callable): a context for the backward pass of a part, given whether it is the last one.
        loss_scale (`float`): factor of the gradients.

    Returns:
        [`AltaForPreTrainingOutput`] with the losses of the whole batch, detached.
    """

    def embed(part: int) -> AltaForPreTrainingOutput:
        seed_forward(part)
        return model(**send_to_device(parts[part], accelerator.device, non_blocking=True), contrast=False)

    local_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    result, cache = _contrast(config, join_embeds(_without_gradients(embed, len(parts))), local_dtype)
    shares = _shares_of_parts(accelerator, parts)
    start = 0
    for index in range(len(parts)):
        with synchronize(index == len(parts) - 1):
            output = embed(index)
            for name, share in shares.items():
                output[name] = output[name] * share[index]
                result[name] = result.get(name, 0) + output[name].detach()
            stop = start + len(output.image_embeds)
            surrogate = weigh_losses(config, output) + _carry(output, cache, start, stop, len(parts))
            accelerator.backward(surrogate * loss_scale)
        start = stop
    result.loss = weigh_losses(config, result)
    return result


def join_embeds(parts: list[AltaForPreTrainingOutput]) -> AltaForPreTrainingOutput:
    """The embeddings of a batch from those of its parts, whose reports are padded to one length."""
    joined = AltaForPreTrainingOutput(logit_scales=parts[0].logit_scales)
    for name in ("image_embeds", "text_embeds", "patch_embeds", "patch_mask"):
        joined[name] = torch.cat([part[name] for part in parts])
    for name in ("word_embeds", "word_mask"):
        joined[name] = pad_sequence([report for part in parts for report in part[name]], batch_first=True)
    return joined


@torch.no_grad()
def _without_gradients(
    embed: Callable[[int], AltaForPreTrainingOutput], num_parts: int
) -> list[AltaForPreTrainingOutput]:
    names = (*PER_STUDY, *MASKS, "logit_scales")
    return [
        AltaForPreTrainingOutput(**{name: output[name] for name in names}) for output in map(embed, range(num_parts))
    ]


def _contrast(
    config: AltaConfig, joined: AltaForPreTrainingOutput, local_dtype: torch.dtype
) -> tuple[AltaForPreTrainingOutput, dict[str, torch.Tensor]]:
    """The contrastive losses of the whole batch and their gradients at the embeddings and scales.

    These are in float32, since in float16 they would vanish. The local loss gets words and patches in `local_dtype`,
    as from the model itself: it has kernels for bfloat16.
    """
    leaves = {name: joined[name].float().requires_grad_() for name in (*PER_STUDY, "logit_scales")}
    for name, leaf in leaves.items():
        joined[name] = leaf.to(local_dtype) if name in ("word_embeds", "patch_embeds") else leaf
    joined.global_contrastive_loss, joined.local_contrastive_loss = contrastive_losses(joined)
    gradients = torch.autograd.grad(weigh_losses(config, joined), list(leaves.values()))
    kept = ("global_contrastive_loss", "local_contrastive_loss", "logit_scales")
    result = AltaForPreTrainingOutput(**{name: joined[name].detach() for name in kept})
    return result, dict(zip(leaves, gradients, strict=True))


def _shares_of_parts(accelerator: Accelerator, parts: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What each part counts in the reconstruction losses, which are means over the masked patches and tokens."""
    counts = torch.stack([torch.stack([p["view_mask"][:, 0].sum(), (p["labels"] != -100).sum()]) for p in parts])
    counts = accelerator.reduce(counts.float().to(accelerator.device), reduction="sum")
    image, report = (counts / counts.sum(0).clamp(min=1)).unbind(1)
    return {"image_reconstruction_loss": image, "masked_report_loss": report}


def _carry(output, cache: dict[str, torch.Tensor], start: int, stop: int, num_parts: int) -> torch.Tensor:
    """A scalar whose gradient at the embeddings of a part is the one that was kept."""
    total = (output.logit_scales * cache["logit_scales"]).sum() / num_parts
    for name in PER_STUDY:
        gradient = cache[name][start:stop]
        if name == "word_embeds":
            gradient = gradient[:, : output.word_embeds.shape[1]]
        total = total + (output[name] * gradient).sum()
    return total


__all__ = ["backward_in_parts", "join_embeds"]
