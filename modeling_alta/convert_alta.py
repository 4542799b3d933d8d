"""Published checkpoints → Hub folder: `python -m modeling_alta.convert_alta --help`.

Every key of a checkpoint is used or named with a reason in the printed report; a missing or misshapen key is an error.
"""

import argparse
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertTokenizerFast

from .configuration_alta import AltaConfig
from .export_alta import build_processor, export_full
from .modeling_alta import AltaForPreTraining


# Published names → ours, first match wins. `.base.` is dropped where the model has no adapters inside.
RENAMES = (
    (r"(cls_token|view_embedding|temporal_embedding)", r"vision_model.study_tokens.\1"),
    (r"(missing_token|pos_embed|patch_embed\..+|norm\..+)", r"vision_model.\1"),
    (r"blocks\.(\d+)\.attn_adapter\.(.+)", r"vision_model.blocks.\1.attn.proj.adapter.\2"),
    (r"blocks\.(\d+)\.mlp_adapter\.(.+)", r"vision_model.blocks.\1.mlp.adapter.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"vision_model.blocks.\1.attn.proj.base.\2"),
    (r"blocks\.(\d+)\.mlp\.(.+)", r"vision_model.blocks.\1.mlp.base.\2"),
    (r"(blocks\..+)", r"vision_model.\1"),
    (r"mask_token", r"image_decoder.mask_token.token"),
    (r"decoder_(embed|blocks|norm|pos_embed)(\..+)?", r"image_decoder.\1\2"),
    (r"decoder_pred\.(.+)", r"image_decoder.predict.\1"),
    (r"bert_embed\.(.+)", r"image_to_report.\1"),
    (r"logit_scale(_local[123])?", r"logit_scale\1"),
    (r"projection_head\.(.+)", r"image_projection.\1"),
    (r"local_projection_head\.(.+)", r"image_local_projection.\1"),
    (r"bert_encoder\.cls_projection_head\.(.+)", r"text_projection.\1"),
    (r"bert_encoder\.local_projection_head\.(.+)", r"text_local_projection.\1"),
    (r"bert_encoder\.cls\.predictions\.bias", r"report_head.bias"),
    (r"bert_encoder\.cls\.predictions\.transform\.(.+)", r"report_head.\1"),
    (r"bert_encoder\.bert\.(.+\.layer\.\d+)\.attn_adapter\.(.+)", r"text_model.\1.attention.output.adapter.\2"),
    (r"bert_encoder\.bert\.(.+\.layer\.\d+)\.mlp_adapter\.(.+)", r"text_model.\1.output.adapter.\2"),
    (r"bert_encoder\.bert\.(.+\.layer\.\d+\.(?:attention\.)?output)\.(.+)", r"text_model.\1.base.\2"),
    (r"bert_encoder\.bert\.((?:embeddings|encoder)\..+)", r"text_model.\1"),
)
LAYER_NORM_HEADS = re.compile(r"((?:image|text)(?:_local)?_projection|report_head)\.LayerNorm\.")

# Keys with no place of their own, and why.
UNUSED = (
    (r"bert_encoder\.cls\.predictions\.decoder\.(weight|bias)", "tied to the word embeddings and to the bias"),
    (r"bert_encoder\.bert\.embeddings\.position_ids", "a buffer, computed"),
    (r"bert_encoder\.(bert\.pooler|cls\.seq_relationship)\..+", "ALTA has no pooler"),
    (r"bert_(mlp|encoder\.model)\..+", "the report decoder of masked record modelling, left behind"),
    (r"(head|fc_norm|head_drop)\..+", "the classifier of another task, left behind"),
)


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
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
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
        settings: further fields of `AltaConfig`, such as `missing_views`.

    Raises:
        ValueError: for a missing or misshapen key, which it names.
    """
    if (Path(mrm) / "config.json").is_file():
        state, report = read_own_mrm(mrm)
        stored = AltaConfig.from_pretrained(mrm)
        vision_heads = vision_heads or stored.vision_config.num_attention_heads
        decoder_heads = stored.decoder_num_attention_heads
    else:
        state, report = rename_keys(read_checkpoint(mrm))
    text_state, text_report = rename_keys(read_text_encoder(text_encoder), prefix="bert_encoder.")
    text_report.drop(text_state, ".adapter.", "adapters start at the identity")
    text_report.drop(text_state, "text_local_projection.", "starts as a copy of the global head")
    for name in [name for name in text_state if name.startswith("text_projection.")]:
        text_state[name.replace("text_", "text_local_")] = text_state[name].clone()
    report.used |= text_report.used
    report.unused |= text_report.unused
    config = config_from(state, text_encoder, vision_heads, decoder_heads, use_adapters=False, **settings)
    model = AltaForPreTraining(config)
    may_be_fresh = ("projection", "logit_scale", "embedding", "missing_token", "image_to_report", "report_head")
    state = {name.replace(".base.", "."): value for name, value in (state | text_state).items()}
    return load_weights(model, state, report, source=mrm, may_be_fresh=may_be_fresh), report


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
    state = {name.replace(".base.", "."): value for name, value in state.items()}
    fresh = ("image_decoder", "report_", "image_to_report", "view_embedding", "temporal_embedding", "missing_token")
    load_weights(model, state, report, source=mae, may_be_fresh=fresh)
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
            renamed[name] = value
            report.used[key] = name
        else:
            report.unused[key] = reason or "no such part in ALTA"
    join_scales(renamed)
    return renamed, report


def rename_key(key: str) -> str | None:
    """Our name of a published parameter, `None` if it has no place."""
    for pattern, replacement in RENAMES:
        match = re.fullmatch(pattern, key)
        if match:
            name = match.expand(replacement).replace(".D_fc1.", ".down.").replace(".D_fc2.", ".up.")
            return LAYER_NORM_HEADS.sub(r"\1.layer_norm.", name)
    return None


def join_scales(state: dict[str, torch.Tensor]) -> None:
    """The published scalars as our two vectors of scales."""
    if "logit_scale" in state:
        state["logit_scale.log_scale"] = state.pop("logit_scale").reshape(1)
    local = [state.pop(f"logit_scale_local{i}") for i in (1, 2, 3) if f"logit_scale_local{i}" in state]
    if local:
        state["local_logit_scales.log_scale"] = torch.stack(local)


def read_text_encoder(folder: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a CXR-BERT, masked-language BERT or bare BERT folder, the last under the names of the others."""
    state = read_checkpoint(folder)
    is_bare = any(name.startswith("embeddings.") for name in state)
    return {f"bert.{name}" if is_bare else name: value for name, value in state.items()}


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
    """Sizes read off the weights and off the text encoder's `config.json`; `settings` are further fields."""
    shape = {name.replace(".base.", "."): tuple(value.shape) for name, value in state.items()}
    try:
        sizes = vision_sizes(shape, vision_heads) | decoder_sizes(shape, decoder_heads)
        if use_adapters:
            width, hidden_size = shape["vision_model.blocks.0.mlp.adapter.down.weight"]
            sizes["adapter_bottleneck_ratio"] = width / hidden_size
    except KeyError as error:
        raise ValueError(
            f"The checkpoint must hold {error.args[0]!r} to tell its sizes, but it is missing."
        ) from error
    return AltaConfig(**(text_sizes(text_encoder) | sizes | {"use_adapters": use_adapters} | settings))


def vision_sizes(shape: dict[str, tuple[int, ...]], num_heads: int | None) -> dict:
    hidden_size = shape["vision_model.study_tokens.cls_token"][-1]
    _, num_channels, _, patch_size = shape["vision_model.patch_embed.proj.weight"]
    vision_config = {
        "image_size": round((shape["vision_model.pos_embed"][1] - 1) ** 0.5) * patch_size,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(shape, "vision_model.blocks"),
        "num_attention_heads": num_heads or max(1, hidden_size // 64),
        "mlp_ratio": shape["vision_model.blocks.0.mlp.fc1.weight"][0] / hidden_size,
        "qkv_bias": "vision_model.blocks.0.attn.qkv.bias" in shape,
    }
    return {"vision_config": vision_config}


def decoder_sizes(shape: dict[str, tuple[int, ...]], num_heads: int) -> dict:
    num_channels = shape["vision_model.patch_embed.proj.weight"][1]
    return {
        "decoder_hidden_size": shape["image_decoder.embed.weight"][0],
        "decoder_num_hidden_layers": count_layers(shape, "image_decoder.blocks"),
        "decoder_num_attention_heads": num_heads,
        "decoder_patch_size": round((shape["image_decoder.predict.weight"][0] / num_channels) ** 0.5),
    }


def text_sizes(text_encoder: str | Path) -> dict:
    """Sizes of a CXR-BERT or BERT folder.

    Raises:
        FileNotFoundError: if the folder has no `config.json`.
    """
    text = json.loads((Path(text_encoder) / "config.json").read_text())
    known = BertConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    text_config = BertConfig(**{name: value for name, value in text.items() if name in known})
    return {"text_config": text_config, "projection_dim": text.get("projection_size", 128)}


def count_layers(names, prefix: str) -> int:
    return len({name.split(".")[2] for name in names if name.startswith(f"{prefix}.")})


def load_weights(
    model: nn.Module,
    state: dict[str, torch.Tensor],
    report: ConversionReport,
    source: str | Path,
    may_be_fresh: tuple[str, ...] = (),
) -> nn.Module:
    """Load a state dict whose every difference to the model is an error or in the report.

    Args:
        may_be_fresh (`tuple[str, ...]`): parts of names that may keep their initial value, a module all or nothing.

    Raises:
        ValueError: naming the keys that are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    wrong = [
        f"{name} must have shape {tuple(expected[name].shape)}, got {tuple(value.shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    wrong += [f"{name} has no place in the model" for name in state if name not in expected]
    missing = [name for name in expected if name not in state]
    modules_given = {name.rpartition(".")[0] for name in state}
    for name in missing:
        is_whole_module = name.rpartition(".")[0] not in modules_given or name.endswith(("_embedding", "_token"))
        if is_whole_module and any(part in name for part in may_be_fresh):
            report.fresh.append(name)
        else:
            wrong.append(f"{name} is missing")
    if wrong:
        raise ValueError(f"{source} does not fit: " + "; ".join(wrong) + ".")
    model.load_state_dict(state, strict=False)
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Published ALTA or MRM checkpoint to a Hub folder.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--alta", type=Path, help="ALTA.pth: the published weights, adapters inside")
    source.add_argument("--mrm", type=Path, help="MRM.pth or an MRM run's folder: the start of ALTA's training")
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
        tokenizer = BertTokenizerFast.from_pretrained(args.text_encoder)
        export_full(model, build_processor(model.config, tokenizer), args.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{report}\nwrote {args.output}")


if __name__ == "__main__":
    main()


__all__ = ["ConversionReport", "convert_alta", "convert_mrm", "load_mae", "read_checkpoint", "rename_key"]
