"""Loads repositories as a user without this package does and prints the answers as one line of JSON.

`python -I load_repositories.py INPUTS HIDDEN FULL [ADAPTER BASE]`: a folder of inputs, packages to hide, joined by
commas, and repositories, each a folder or a Hub id.
"""

import json
import sys
from pathlib import Path


class HidingFinder:
    """Stands before all finders of modules and does not find some top-level packages."""

    def __init__(self, hidden: list[str]):
        self.hidden, self.finders = hidden, list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *args):
        for finder in self.finders:
            for distribution in getattr(finder, "find_distributions", lambda *args: ())(*args):
                if distribution.metadata["Name"].replace("-", "_") not in self.hidden:
                    yield distribution


def hide(names: list[str]) -> list[str]:
    """Make packages impossible to import, and give those that still can be."""
    sys.meta_path[:] = [HidingFinder(names)]
    return [name for name in names if can_import(name)]


def can_import(name: str) -> bool:
    try:
        __import__(name)
    except ModuleNotFoundError:
        return False
    return True


def embed(model, batch) -> dict:
    names = ("input_ids", "attention_mask", "pixel_values", "view_mask")
    output = model(**{name: batch[name] for name in names})
    return {name: output[name].tolist() for name in ("image_embeds", "text_embeds", "logits_per_image")}


def origin(thing) -> str:
    return f"{type(thing).__module__.partition('.')[0]}:{type(thing).__name__}"


def answer_full(repo: str, inputs: dict, batch: dict) -> dict:
    import transformers

    names = ("Model", "Processor", "ModelForZeroShotImageClassification", "ModelForPreTraining")
    names += ("ImageProcessor", "Config")
    loaded = {
        name: getattr(transformers, f"Auto{name}").from_pretrained(repo, trust_remote_code=True) for name in names
    }
    loaded["stock"] = transformers.pipeline("zero-shot-image-classification", model=repo, trust_remote_code=True)
    loaded["study"] = transformers.pipeline(model=repo, trust_remote_code=True)
    frontal = inputs["study"]["current_frontal"]
    ask = {"candidate_labels": inputs["labels"], "hypothesis_template": inputs["template"]}
    return embed(loaded["Model"], batch) | {
        "origins": {name: origin(thing) for name, thing in loaded.items()},
        "zero_shot": embed(loaded["ModelForZeroShotImageClassification"], batch),
        "loss": loaded["ModelForPreTraining"](**batch).loss.item(),
        "pixel_values": loaded["ImageProcessor"](frontal, return_tensors="pt")["pixel_values"].tolist(),
        "input_ids": loaded["Processor"](text=inputs["labels"], padding=True)["input_ids"],
        "stock_pipeline": loaded["stock"](frontal, **ask),
        "study_pipeline": loaded["study"](inputs["study"], **ask),
    }


def answer_adapter(adapter: str, base: str, inputs: dict, batch: dict) -> dict:
    from peft import PeftModel
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(adapter, trust_remote_code=True)
    over_base = PeftModel.from_pretrained(AutoModel.from_pretrained(base, trust_remote_code=True), adapter)
    processor = AutoProcessor.from_pretrained(adapter, trust_remote_code=True)
    return embed(model, batch) | {
        "origins": {"Model": origin(model), "Processor": origin(processor)},
        "over_base": embed(over_base, batch),
        "input_ids": processor(text=inputs["labels"], padding=True)["input_ids"],
    }


def main(folder: str, hidden: str, full: str, adapter: str | None = None, base: str | None = None) -> None:
    importable = hide(hidden.split(","))
    import torch
    from safetensors.torch import load_file

    torch.set_grad_enabled(False)
    inputs, batch = json.loads(Path(folder, "inputs.json").read_text()), load_file(Path(folder, "batch.safetensors"))
    answers = {"importable": importable, "full": answer_full(full, inputs, batch)}
    if adapter is not None:
        answers["adapter"] = answer_adapter(adapter, base, inputs, batch)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
