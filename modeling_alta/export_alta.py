"""Model or adapter → Hub repository that loads with or without this package: `python -m modeling_alta.export_alta`.

A full repository holds one safetensors file with the adapters inside; an adapter repository holds the adapters and
what trains beside them, over a base that it names. Both ship the code files, the processor, the tokenizer and a card.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from .classification_alta import AltaForImageClassification
from .configuration_alta import AltaConfig
from .image_processing_alta import AltaImageProcessor
from .modeling_alta import AltaForPreTraining, AltaModel
from .processing_alta import AltaProcessor
from .shipped_alta import copy_code


MODEL_AUTO_MAP = {
    "AutoConfig": "modeling_alta.AltaConfig",
    "AutoModel": "modeling_alta.AltaModel",
    "AutoModelForImageClassification": "classification_alta.AltaForImageClassification",
    "AutoModelForPreTraining": "modeling_alta.AltaForPreTraining",
    "AutoModelForZeroShotImageClassification": "modeling_alta.AltaModel",
}
CUSTOM_PIPELINES = {
    "alta-study": {
        "impl": "pipeline_alta.AltaStudyPipeline",
        "pt": ["AutoModelForZeroShotImageClassification"],
        "type": "multimodal",
    }
}
# A classifier has no text tower, so none of the other classes fits it.
CLASSIFIER_AUTO_MAP = {name: MODEL_AUTO_MAP[name] for name in ("AutoConfig", "AutoModelForImageClassification")}
PLAIN_CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [alta, chest-x-ray, radiology]
---

An ALTA model of chest radiographs{and_reports} that carries no evaluation yet. It is no medical device.
"""


def build_processor(config: AltaConfig, tokenizer: PreTrainedTokenizerBase) -> AltaProcessor:
    """Processor whose image size and text limit are those of a model's config."""
    tokenizer.model_max_length = config.max_report_length
    return AltaProcessor(AltaImageProcessor.from_image_size(config.vision_config.image_size), tokenizer)


def export_full(model: PreTrainedModel, processor: AltaProcessor, output: str | Path, card: str | None = None) -> Path:
    """Write a full repository.

    Args:
        model (`AltaModel`, `AltaForPreTraining` or `AltaForImageClassification`): without PEFT adapters;
            `merge_and_unload` puts them inside.
        processor (`AltaProcessor`).
        output (`str` or `Path`): folder to write.
        card (`str`, *optional*): text of its README.md.

    Raises:
        ValueError: if PEFT adapters are still attached, or if `output` holds an adapter repository.
    """
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"`model` must carry no PEFT adapters to become a full repository, got {sorted(model.peft_config)}: "
            "call `merge_and_unload` first."
        )
    output = Path(output)
    _check_free_of(output, "adapter_config.json")
    model.save_pretrained(output)
    if isinstance(model, AltaForImageClassification):
        # Emptied, since its config may have come from a full model with the zero-shot pipeline.
        entries = {"auto_map": CLASSIFIER_AUTO_MAP, "custom_pipelines": {}}
    else:
        entries = {"auto_map": MODEL_AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    _add_to_json(output / "config.json", **entries)
    return _complete(output, processor, card or plain_card(model))


def export_adapter(
    model, processor: AltaProcessor, output: str | Path, base: str, card: str | None = None, adapter_name="default"
) -> Path:
    """Write an adapter repository.

    Args:
        model (`PeftModel`): with the adapter `adapter_name`.
        processor (`AltaProcessor`).
        output (`str` or `Path`): folder to write.
        base (`str`): Hub id or folder of the base that the adapter was trained over.
        card (`str`, *optional*): text of its README.md.

    Raises:
        ValueError: if `output` holds a full repository.
    """
    output = Path(output)
    _check_free_of(output, "config.json")
    model.peft_config[adapter_name].base_model_name_or_path = str(base)
    # The word embeddings are frozen; left to decide, PEFT would look the base up on the Hub to compare vocabularies.
    model.save_pretrained(output, selected_adapters=[adapter_name], save_embedding_layers=False)
    _move_up(output / adapter_name)
    return _complete(output, processor, card or plain_card(model.get_base_model()))


def push(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Upload a repository folder to the Hub and give its URL."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export ALTA"))


def plain_card(model: PreTrainedModel) -> str:
    """The card of a repository that got none."""
    if isinstance(model, AltaForImageClassification):
        return PLAIN_CARD.format(task="image-classification", and_reports="")
    return PLAIN_CARD.format(task="zero-shot-image-classification", and_reports=" and reports")


def _complete(output: Path, processor: AltaProcessor, card: str) -> Path:
    processor.save_pretrained(output)
    path = output / "processor_config.json"
    image_processor = json.loads(path.read_text())["image_processor"]
    image_processor["auto_map"] = {"AutoImageProcessor": "image_processing_alta.AltaImageProcessor"}
    auto_map = {"AutoProcessor": "processing_alta.AltaProcessor"}
    _add_to_json(path, auto_map=auto_map, image_processor=image_processor)
    copy_code(output)
    (output / "README.md").write_text(card)
    return output


def _add_to_json(path: Path, **values) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _check_free_of(output: Path, name: str) -> None:
    """Only one of the two configs tells `from_pretrained` which kind of repository it sees."""
    if (output / name).exists():
        raise ValueError(f"`output` must not hold a repository of the other kind, got {name} in {output}.")


def _move_up(folder: Path) -> None:
    """PEFT writes every adapter but `default` into a folder of its name, where nothing would find it."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.replace(folder.parent / path.name)
        folder.rmdir()


def load_whole(
    model_class: type[PreTrainedModel],
    name: str,
    argument: str,
    adapter: str | None = None,
    is_trainable: bool = False,
    **settings,
):
    """
    A model all of whose weights come from files, to be exported or trained over.

    Args:
        model_class (`type`): class of the model.
        name (`str`): its folder or Hub id.
        argument (`str`): what `name` is called where the user gives it.
        adapter (`str`, *optional*): folder or Hub id of an adapter to put over it.
        is_trainable (`bool`): whether that adapter will train.
        settings: fields of the model's config.

    Returns:
        `model_class`, or `PeftModel` with an adapter.

    Raises:
        ValueError: no model, an adapter repository, an adapter of another base, or weights that neither the model nor
            its adapter holds, and that training would draw by chance.
    """
    try:
        if find_adapter_config_file(name):
            raise ValueError(f"`{argument}` must be a full model or a base, got {name!r}, which is an adapter.")
        model, info = model_class.from_pretrained(name, output_loading_info=True, **settings)
    except OSError as error:
        raise ValueError(f"`{argument}` must be the folder or Hub id of a model, got {name!r}: {error}") from error
    missing = sorted(info["missing_keys"])
    if adapter is not None:
        adapted = _put_adapter(model, adapter, name, is_trainable)
        model, missing = adapted, without_copies(adapted.get_base_model(), missing)
    if missing:
        raise ValueError(
            f"`{argument}` must hold every weight of {model_class.__name__}, got {name!r} without {len(missing)} of "
            f"them, such as {missing[0]}."
        )
    return model


def _put_adapter(model: PreTrainedModel, adapter: str, name: str, is_trainable: bool):
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"`adapter` must be one over {name!r}, got {adapter!r}: {error}") from error


def without_copies(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Those of a model's parameters of which no adapter in it holds a copy, as `modules_to_save` makes them."""
    from peft.utils import ModulesToSaveWrapper

    copied = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, ModulesToSaveWrapper))
    return sorted(name for name in names if not name.startswith(copied))


def load_for_export(model: str, adapter: str | None):
    """A full model from its folder, or from a base and an adapter over it, and its processor."""
    processor = AltaProcessor.from_pretrained(adapter or model)
    # A model without the parts of its training must not get new ones.
    architectures = AltaConfig.from_pretrained(model).architectures or []
    classes = {loaded_as.__name__: loaded_as for loaded_as in (AltaForPreTraining, AltaForImageClassification)}
    model_class = next((classes[name] for name in architectures if name in classes), AltaModel)
    return load_whole(model_class, model, "model", adapter), processor


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Model or adapter to a Hub repository, written and optionally pushed."
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of a full model or of a base")
    parser.add_argument("--adapter", help="folder or Hub id of an adapter over it")
    parser.add_argument(
        "--kind", choices=("full", "adapter"), default="full", help="repository to write (default: full)"
    )
    parser.add_argument("--base-id", help="Hub id that an adapter repository names as its base (default: --model)")
    parser.add_argument("--card", type=Path, help="README.md to put into the repository")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--push", metavar="REPO_ID", help="also upload the folder to this Hub repository")
    parser.add_argument("--private", action="store_true", help="create that repository as private")
    args = parser.parse_args(arguments)
    if args.kind == "adapter" and args.adapter is None:
        parser.error("argument --kind: `adapter` needs --adapter, got none")
    try:
        export(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def export(args: argparse.Namespace) -> None:
    model, processor = load_for_export(args.model, args.adapter)
    card = args.card.read_text() if args.card else None
    if args.kind == "adapter":
        export_adapter(model, processor, args.output, args.base_id or args.model, card)
    else:
        export_full(model.merge_and_unload() if args.adapter else model, processor, args.output, card)
    print(f"wrote {args.output}")
    if args.push:
        print(f"pushed {push(args.output, args.push, args.private)}")


if __name__ == "__main__":
    main()


__all__ = ["build_processor", "export_adapter", "export_full", "load_whole", "push", "without_copies"]
