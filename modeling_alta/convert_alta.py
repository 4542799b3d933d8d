"""Published checkpoints → Hub folder: `python -m modeling_alta.convert_alta --help`.

Every key of a checkpoint is used or named with a reason in the printed report; a missing or misshapen key is an error.
"""

import argparse
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertTokenizerFast

from .configuration_alta import AltaConfig
from .export_alta import build_processor, export_full
from .modeling_alta import AltaForPreTraining
from .published_names import SCALES, UNUSED, published_key, rename_key


FRESH_AFTER_MRM = (
    "vision_model.missing_token",
    "vision_model.study_tokens.view_embedding",
    "vision_model.study_tokens.temporal_embedding",
    "image_projection.",
    "image_local_projection.",
    "text_projection.",
    "logit_scale.",
    "local_logit_scales.",
    "image_to_report.",
    "report_head.",
)
FRESH_AFTER_MAE = (*FRESH_AFTER_MRM[:3], "image_decoder.", "image_to_report.", "report_decoder.", "report_head.")


@dataclass
class ConversionReport:
    """What became of every key.

    Args:
        used (`dict[str, str]`): key of a checkpoint → name in the model.
        unused (`dict[str, str]`): key of a checkpoint → reason why it was left out.
        fresh (`list[str]`): names in the model that keep their initial value.
    """

    used: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)

    def drop(self, state: dict[str, torch.Tensor], part: str, reason: str) -> None:
        """Leave out of `state` every name that holds `part`."""
        for key in [key for key, name in self.used.items() if part in name]:
            del state[self.used.pop(key)]
            self.unused[key] = reason

    def __str__(self) -> str:
        lines = [f"used {len(self.used)} keys"]
        lines += [f"not used: {key} ({reason})" for key, reason in self.unused.items()]
        lines += [f"newly initialised: {name}" for name in self.fresh]
        return "\n".join(lines)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a `.pth`, `.bin` or `.safetensors` file or of a folder that holds one, without running its code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint of tensors.
    """
    path = Path(path)
    if path.is_dir():
        candidates = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        path = next((file for file in candidates if file.is_file()), candidates[0])
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a checkpoint, got {path}, which does not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"`path` must be a checkpoint of plain tensors, got {path}: {error}") from error
    content = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"`path` must hold a dict of tensors, or one under 'model', got {path}.")
    return content


def convert_alta(
    alta: str | Path, text_encoder: str | Path, vision_heads: int | None = None, decoder_heads: int = 6
) -> tuple[AltaForPreTraining, ConversionReport]:
    """The published ALTA weights as a full model.

    Args:
        alta (`str` or `Path`): `ALTA.pth`.
        text_encoder (`str` or `Path`): the CXR-BERT folder, for its sizes.
        vision_heads (`int`, *optional*): heads of the vision tower, hidden size / 64 by default.
        decoder_heads (`int`): heads of the image decoder.

    Raises:
        ValueError: for a missing or misshapen key, which it names.
    """
    state, report = rename_keys(read_checkpoint(alta))
    config = config_from(state, text_encoder, vision_heads, decoder_heads, use_adapters=True)
    return load_weights(AltaForPreTraining(config), state, report, source=alta), report


def convert_mrm(
    mrm: str | Path, text_encoder: str | Path, vision_heads: int | None = None, decoder_heads: int = 6, **settings
) -> tuple[AltaForPreTraining, ConversionReport]:
    """The start of ALTA's training: a frozen base of an MRM checkpoint and a text encoder, without adapters.

    Args:
        mrm (`str` or `Path`): `MRM.pth`, or a folder that the MRM stage wrote.
        text_encoder (`str` or `Path`): a CXR-BERT or BERT folder.
        vision_heads, decoder_heads (`int`): of `MRM.pth`, as for `convert_alta`; a folder tells its own.
        settings: further fields of `AltaConfig`, such as `missing_views`.

    Raises:
        ValueError: for a missing or misshapen key, which it names.
    """
    if (Path(mrm) / "config.json").is_file():
        state, report = read_own_mrm(mrm)
        stored = AltaConfig.from_pretrained(mrm)
        vision_heads = stored.vision_config.num_attention_heads
        decoder_heads = stored.decoder_num_attention_heads
    else:
        state, report = rename_keys(read_checkpoint(mrm))
    config = config_from(state, text_encoder, vision_heads, decoder_heads, use_adapters=False, **settings)
    model = AltaForPreTraining(config)
    state |= read_text_encoder(text_encoder, report)
    state |= local_text_head(model.state_dict() | state)
    state = without_adapters(state, report)
    load_weights(model, state, report, source=f"{mrm} with {text_encoder}", may_be_fresh=FRESH_AFTER_MRM)
    return model, report


def load_mae(model: nn.Module, mae: str | Path) -> ConversionReport:
    """Start the vision tower of an MRM model from MAE weights in timm's or Meta's layout.

    Args:
        model (`AltaForMaskedRecordModeling`): changed in place.
        mae (`str` or `Path`): a `.pth` or `.safetensors` file.

    Raises:
        ValueError: for a missing or misshapen key, which it names.
    """
    state, report = rename_keys(read_checkpoint(mae))
    report.drop(state, "image_decoder.", "the decoder of MAE, whose sizes are others")
    state = without_adapters(state, report)
    load_weights(model, state, report, source=mae, may_be_fresh=FRESH_AFTER_MAE)
    return report


def rename_keys(state: dict[str, torch.Tensor], prefix: str = "") -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Published names → names of a full model, with what has no place listed as unused.

    Args:
        prefix (`str`): what the published model puts before these keys.
    """
    report, renamed = ConversionReport(), {}
    for key, value in state.items():
        reason = next((reason for pattern, reason in UNUSED if re.fullmatch(pattern, prefix + key)), None)
        name = rename_key(prefix + key)
        if reason is None and name is not None:
            report.used[key] = name
            renamed[name] = value
        else:
            report.unused[key] = reason or "no such part in ALTA"
    return renamed | join_scales(state), report


def without_adapters(state: dict[str, torch.Tensor], report: ConversionReport) -> dict[str, torch.Tensor]:
    """The names, here and in `report`, of a model without adapters inside."""
    report.used = {key: name.replace(".base.", ".") for key, name in report.used.items()}
    return {name.replace(".base.", "."): value for name, value in state.items()}


def join_scales(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published scalars as our two vectors of scales, each whole or not there.

    Raises:
        ValueError: naming the scalars that are missing or misshapen.
    """
    joined = {}
    for name, keys in SCALES.items():
        wrong = [f"{key} is missing" for key in keys if key not in state]
        if len(wrong) == len(keys):
            continue
        shapes = {key: tuple(state[key].shape) for key in keys if key in state}
        wrong += [f"{key} must have shape (), got {shape}" for key, shape in shapes.items() if math.prod(shape) != 1]
        if wrong:
            raise ValueError(f"The checkpoint does not fit: {'; '.join(wrong)}.")
        joined[name] = torch.stack([state[key].reshape(()) for key in keys])
    return joined


def read_text_encoder(folder: str | Path, report: ConversionReport) -> dict[str, torch.Tensor]:
    """Weights of a CXR-BERT, masked-language BERT or bare BERT folder under our names, entered into `report`."""
    weights = read_checkpoint(folder)
    is_bare = any(name.startswith("embeddings.") for name in weights)
    state, text_report = rename_keys(weights, prefix="bert_encoder.bert." if is_bare else "bert_encoder.")
    text_report.drop(state, ".adapter.", "adapters start at the identity")
    text_report.drop(state, "text_local_projection.", "starts as a copy of the global head")
    report.used |= text_report.used
    report.unused |= text_report.unused
    return state


def local_text_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The local text head as a copy of the global one, whether that was loaded or is new."""
    head = {name: value for name, value in state.items() if name.startswith("text_projection.")}
    return {name.replace("text_", "text_local_"): value.clone() for name, value in head.items()}


def read_own_mrm(folder: str | Path) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Weights that our MRM stage wrote; its report decoder is left behind."""
    state = read_checkpoint(folder)
    report = ConversionReport(used={name: name for name in state})
    for part in ("report_decoder.", "report_head.", "image_to_report."):
        report.drop(state, part, "the report decoder of masked record modelling, left behind")
    return state, report


def config_from(
    state: dict[str, torch.Tensor],
    text_encoder: str | Path,
    vision_heads: int | None,
    decoder_heads: int,
    use_adapters: bool,
    **settings,
) -> AltaConfig:
    """Sizes read off the weights and off the text encoder's `config.json`; `settings` are further fields.

    Raises:
        ValueError: if the weights do not tell their sizes, or if these make no model.
    """
    shape = {name.replace(".base.", "."): tuple(value.shape) for name, value in state.items()}
    sizes = vision_sizes(shape, vision_heads) | decoder_sizes(shape, decoder_heads)
    if use_adapters:
        adapter = "vision_model.blocks.0.mlp.adapter."
        width = read_size(shape, (f"{adapter}down.weight", 0), (f"{adapter}down.bias", 0), (f"{adapter}up.weight", 1))
        sizes["adapter_bottleneck_ratio"] = width / sizes["vision_config"]["hidden_size"]
    try:
        return AltaConfig(**(text_sizes(text_encoder) | sizes | {"use_adapters": use_adapters} | settings))
    except StrictDataclassError as error:
        raise ValueError(f"The sizes of the checkpoints and the heads make no model: {error}") from error


def vision_sizes(shape: dict[str, tuple[int, ...]], num_heads: int | None) -> dict:
    patches, mlp = "vision_model.patch_embed.proj.weight", "vision_model.blocks.0.mlp."
    hidden_size = read_size(
        shape, ("vision_model.study_tokens.cls_token", 2), ("vision_model.norm.weight", 0), (patches, 0)
    )
    patch_size = read_size(shape, (patches, 2), (patches, 3))
    num_tokens = read_size(shape, ("vision_model.pos_embed", 1), ("image_decoder.pos_embed", 1))
    mlp_size = read_size(shape, (f"{mlp}fc1.weight", 0), (f"{mlp}fc1.bias", 0), (f"{mlp}fc2.weight", 1))
    vision_config = {
        "image_size": round((num_tokens - 1) ** 0.5) * patch_size,
        "patch_size": patch_size,
        "num_channels": read_size(shape, (patches, 1)),
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(shape, "vision_model.blocks"),
        "num_attention_heads": num_heads or max(1, hidden_size // 64),
        "mlp_ratio": mlp_size / hidden_size,
        "qkv_bias": any(re.fullmatch(r"vision_model\.blocks\.\d+\.attn\.qkv\.bias", name) for name in shape),
    }
    return {"vision_config": vision_config}


def decoder_sizes(shape: dict[str, tuple[int, ...]], num_heads: int) -> dict:
    num_pixels = read_size(shape, ("image_decoder.predict.weight", 0), ("image_decoder.predict.bias", 0))
    num_channels = read_size(shape, ("vision_model.patch_embed.proj.weight", 1))
    return {
        "decoder_hidden_size": read_size(
            shape, ("image_decoder.embed.weight", 0), ("image_decoder.embed.bias", 0), ("image_decoder.norm.weight", 0)
        ),
        "decoder_num_hidden_layers": count_layers(shape, "image_decoder.blocks"),
        "decoder_num_attention_heads": num_heads,
        "decoder_patch_size": round((num_pixels / num_channels) ** 0.5),
    }


def text_sizes(text_encoder: str | Path) -> dict:
    """Sizes of a CXR-BERT or BERT folder.

    Raises:
        FileNotFoundError: if the folder has no `config.json`.
    """
    text = json.loads((Path(text_encoder) / "config.json").read_text())
    known = BertConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    text_config = BertConfig(**{name: value for name, value in text.items() if name in known})
    return {
        "text_config": text_config,
        "projection_dim": text.get("projection_size", 128),
        "max_report_length": min(AltaConfig.max_report_length, text_config.max_position_embeddings),
    }


def read_size(shape: dict[str, tuple[int, ...]], *places: tuple[str, int]) -> int:
    """The size that most axes of these weights agree on: a misshapen one among them is then named by `load_weights`.

    Raises:
        ValueError: if a weight is missing, or if there is no majority.
    """
    missing = [describe(name) for name, _ in places if name not in shape]
    if missing:
        raise ValueError(f"The checkpoint does not fit: {'; '.join(missing)} is missing.")
    sizes = [shape[name][axis] for name, axis in places if len(shape[name]) > axis]
    size = max(sizes, key=sizes.count, default=0)
    if 2 * sizes.count(size) <= len(places):
        given = "; ".join(f"{describe(name)} has shape {shape[name]}" for name in dict(places))
        raise ValueError(f"The checkpoint does not fit, its keys must agree in size: {given}.")
    return size


def count_layers(names, prefix: str) -> int:
    return len({name.split(".")[2] for name in names if name.startswith(f"{prefix}.")})


def describe(name: str) -> str:
    """A name of ours with that of the checkpoint beside it."""
    key = published_key(name)
    return name if key is None else f"{key} ({name} here)"


def load_weights(
    model: nn.Module,
    state: dict[str, torch.Tensor],
    report: ConversionReport,
    source: str | Path,
    may_be_fresh: tuple[str, ...] = (),
) -> nn.Module:
    """Load a state dict whose every difference to the model is an error or in the report.

    Args:
        may_be_fresh (`tuple[str, ...]`): starts of names that may keep their initial value, all or none of a start.

    Raises:
        ValueError: naming the keys that are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    wrong = [
        f"{describe(name)} must have shape {tuple(expected[name].shape)}, got {tuple(value.shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    wrong += [f"{describe(name)} has no place in the model" for name in state if name not in expected]
    absent = tuple(start for start in may_be_fresh if not any(name.startswith(start) for name in state))
    missing = [name for name in expected if name not in state]
    wrong += [f"{describe(name)} is missing" for name in missing if not name.startswith(absent)]
    if wrong:
        raise ValueError(f"{source} does not fit: " + "; ".join(wrong) + ".")
    report.fresh += missing
    model.load_state_dict(state, strict=False)
    return model


def read_tokenizer(folder: str | Path, vocab_size: int | None = None) -> BertTokenizerFast:
    """The tokenizer of a text encoder, and of no more than `vocab_size` tokens if that is given.

    Raises:
        FileNotFoundError: if the folder has no vocabulary, without which transformers makes up an empty one.
        ValueError: if the vocabulary is larger than the word embeddings.
    """
    if not any((Path(folder) / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise FileNotFoundError(f"The text encoder must hold vocab.txt or tokenizer.json, got none in {folder}.")
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ValueError(f"The vocabulary of {folder} must have at most {vocab_size} tokens, got {len(tokenizer)}.")
    return tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Published ALTA or MRM checkpoint to a Hub folder.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--alta", type=Path, help="ALTA.pth: the published weights, adapters inside")
    source.add_argument("--mrm", type=Path, help="MRM.pth or `model/` of an MRM run: the start of ALTA's training")
    parser.add_argument(
        "--text-encoder", type=Path, required=True, help="CXR-BERT folder: config, vocabulary, weights"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--vision-heads", type=int, help="heads of the vision tower (default: hidden size / 64)")
    parser.add_argument("--decoder-heads", type=int, default=6, help="heads of the image decoder (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is newly initialised (default: 0)")
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    convert = convert_alta if args.alta else convert_mrm
    try:
        model, report = convert(args.alta or args.mrm, args.text_encoder, args.vision_heads, args.decoder_heads)
        tokenizer = read_tokenizer(args.text_encoder, model.config.text_config.vocab_size)
        export_full(model, build_processor(model.config, tokenizer), args.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{report}\nwrote {args.output}")


if __name__ == "__main__":
    main()


__all__ = [
    "ConversionReport",
    "convert_alta",
    "convert_mrm",
    "load_mae",
    "read_checkpoint",
    "read_tokenizer",
    "rename_key",
]
