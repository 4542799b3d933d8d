"""Tiny repositories for the tests of export and pipeline, and a process of its own to load them in."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from tiny import make_batch, make_config, randomise
from transformers import BertTokenizer

from modeling_alta import VIEW_NAMES, AltaAdapterConfig, AltaForPreTraining, AltaModel, AltaProcessor
from modeling_alta.export_alta import build_processor


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "there", "is", "no", "pneumonia", "effusion", "left", "right"]
LABELS = ["pneumonia", "no pneumonia", "left effusion"]
TEMPLATE = "there is {}"


def make_processor() -> AltaProcessor:
    """The processor of a tiny model, with a vocabulary of its 60 tokens."""
    words = WORDS + [f"word{i}" for i in range(60 - len(WORDS))]
    return build_processor(make_config(), BertTokenizer(vocab={word: index for index, word in enumerate(words)}))


def make_full(seed: int = 0) -> AltaForPreTraining:
    """A full model whose adapters are not zero."""
    torch.manual_seed(seed)
    return randomise(AltaForPreTraining(make_config()), seed).eval()


def make_base() -> AltaForPreTraining:
    torch.manual_seed(1)
    return AltaForPreTraining(make_config(use_adapters=False)).eval()


def make_adapter() -> PeftModel:
    """An adapter over `make_base`, everything it trains moved from its start."""
    return randomise(get_peft_model(make_base(), AltaAdapterConfig())).eval()


def plain(model: AltaForPreTraining) -> AltaModel:
    """The same weights in a model without the parts of the training."""
    plain_model = AltaModel(model.config).eval()
    plain_model.load_state_dict({name: model.state_dict()[name] for name in plain_model.state_dict()})
    return plain_model


def write_study(folder: Path) -> dict[str, str]:
    """Paths of four small radiographs, by view."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 50, 40), dtype=np.uint8)
    study = {name: str(folder / f"{name}.png") for name in VIEW_NAMES}
    for path, image in zip(study.values(), pixels, strict=True):
        Image.fromarray(image).save(path)
    return study


def write_inputs(folder: Path) -> None:
    """What `load_repositories.py` runs on: a batch, a study, labels and a template."""
    batch = {name: value.contiguous() for name, value in make_batch().items()}
    save_file(batch, folder / "batch.safetensors")
    inputs = {"study": write_study(folder), "labels": LABELS, "template": TEMPLATE}
    (folder / "inputs.json").write_text(json.dumps(inputs))


def rank(model: AltaModel, processor: AltaProcessor, images, template: str = TEMPLATE) -> list[dict]:
    """The answer of a zero-shot pipeline, worked out from the model's logits."""
    texts = [template.format(label) for label in LABELS]
    with torch.no_grad():
        logits = model(**processor(images=images, text=texts, padding=True, return_tensors="pt")).logits_per_image
    scores = zip(LABELS, logits[0].softmax(-1).tolist(), strict=True)
    return [{"label": label, "score": score} for label, score in sorted(scores, key=lambda item: -item[1])]


def run_script(name: str, folder: Path, environment: dict[str, str], arguments: Sequence) -> list[str]:
    """Lines that a script beside this file prints, run from `folder` with nothing of this project on its path."""
    script = Path(__file__).with_name(name)
    command = [sys.executable, "-I", str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
