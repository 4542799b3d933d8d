"""What trains of a model, apart from its frozen weights: for checkpoints and the best of a run."""

import hashlib
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from training.disk import UNFINISHED
from training.engines import SHARDED
from training.stage import trained_parameters


WEIGHTS_NAME = "trained.safetensors"


def register_trained_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """
    Let the checkpoints of `accelerator` hold what trains alone, where one process has all of it.

    FSDP and DeepSpeed write their shards themselves.

    Raises:
        ValueError: on loading, if the weights are those of another model.
    """
    if accelerator.distributed_type in SHARDED:
        return

    def save(models: list[nn.Module], weights: list[dict], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            save_weights(trained_weights(accelerator, model), Path(folder, WEIGHTS_NAME))

    def load(models: list[nn.Module], folder: str) -> None:
        models.clear()
        load_weights(accelerator.unwrap_model(model), Path(folder, WEIGHTS_NAME))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def trained_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that train, whole and on the CPU; every process must call it."""
    if accelerator.distributed_type in SHARDED:
        names = trained_parameters(accelerator.unwrap_model(model)).keys()
        return {name: value for name, value in accelerator.get_state_dict(model).items() if name in names}
    parameters = trained_parameters(accelerator.unwrap_model(model))
    return {name: value.detach().cpu().contiguous() for name, value in parameters.items()}


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights aside and rename them over those that are there."""
    unfinished = path.with_name(f"{path.name}.{UNFINISHED}")
    save_file(weights, unfinished)
    unfinished.rename(path)


def load_weights(model: nn.Module, path: Path) -> None:
    """
    Read the parameters that train.

    Raises:
        ValueError: if the file holds other names or shapes than `model` trains.
    """
    put_weights(model, load_file(path), str(path))


@torch.no_grad()
def put_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """
    Copy weights into the parameters that train.

    Args:
        model (`nn.Module`).
        weights (`dict` of `str` to `torch.Tensor`): one for each of them.
        source (`str`): where they come from, for the message.

    Raises:
        ValueError: if `weights` holds other names or shapes than `model` trains.
    """
    expected = trained_parameters(model)
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if wrong:
        raise ValueError(f"`{source}` must hold what the recipe trains, got another set or other shapes: {wrong[:5]}.")
    for name, parameter in expected.items():
        parameter.copy_(weights[name])


def frozen_sha256(model: nn.Module) -> str:
    """Hash of the parameters that do not train, over which a checkpoint's weights were learnt."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad and ".original_module." not in name:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


__all__ = [
    "WEIGHTS_NAME",
    "frozen_sha256",
    "load_weights",
    "put_weights",
    "register_trained_weights",
    "save_weights",
    "trained_weights",
]
