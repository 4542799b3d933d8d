"""
What does training by adapters cost, in parameters and in FLOPs of the stage before?

`python -m benchmarks.budget` prints JSON with `trainable_share`, the trained parameters over all, and `flops_ratio`,
the training FLOPs of the ALTA recipe over those of the MRM recipe. Counted are train steps of the models of both
recipes at full size, forward and backward, as the code runs them: a frozen matrix takes no gradient, but gradients
pass through it. They are taken times the epochs of the recipe. What is assumed: an epoch goes through as many studies
in both, of which MRM sees the current frontal; the mean study has `--num-views` views and `--report-tokens` tokens.
Optimizer, augmentation and validation count nothing.

`variants` tells the ratio where only present views are computed and where reports are shorter; and beside each, the
ratio if MRM went through every view of a study as a sample of its own, and the ALTA epochs for a fifth of MRM.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.flops import count_flops
from modeling_alta import AltaConfig, AltaForMaskedRecordModeling, AltaForPreTraining
from recipes.recipe import TrainArguments, read_recipe


RECIPES = Path(__file__).parent.parent / "recipes"
PUBLISHED_BATCH = 96  # studies of all processes between which the ALTA recipe contrasts: 4 processes of 24


@dataclass
class Corpus:
    """The mean study: how many views it has, the current frontal among them, and the tokens of its report."""

    num_views: int = 2
    report_tokens: int = 90


def empty_model(model_class: type[nn.Module], config: AltaConfig) -> nn.Module:
    """A model of zeros, which costs no initialisation and counts the same."""
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    return model.train()


def build_alta(recipe: TrainArguments, **settings: Any) -> AltaForPreTraining:
    """The model that an ALTA recipe trains, its adapters inside."""
    peft = recipe.peft
    adapters = {
        "adapter_bottleneck_ratio": peft["bottleneck_ratio"],
        "parallel_adapter_scale": peft["parallel_scale"],
    }
    model = empty_model(AltaForPreTraining, AltaConfig(**{**recipe.model, **adapters, **settings}))
    model.freeze_pretrained()
    return model


def build_mrm(recipe: TrainArguments) -> AltaForMaskedRecordModeling:
    """The model that an MRM recipe trains, with the vocabulary of CXR-BERT."""
    return empty_model(AltaForMaskedRecordModeling, AltaConfig(**recipe.model, use_adapters=False))


def text_inputs(config: AltaConfig, batch_size: int, num_tokens: int) -> dict[str, torch.Tensor]:
    """Reports of one length, `report_mask_ratio` of the tokens between the special ones masked."""
    input_ids = torch.full((batch_size, num_tokens), 5)
    num_masked = round(config.report_mask_ratio * (num_tokens - 2))
    labels = torch.full_like(input_ids, -100)
    labels[:, 1 : 1 + num_masked] = 5
    return {"attention_mask": torch.ones_like(input_ids), "masked_input_ids": input_ids, "labels": labels}


def image_inputs(config: AltaConfig, batch_size: int, views: tuple[int, ...]) -> dict[str, torch.Tensor]:
    side, target = config.vision_config.image_size, config.target_image_size
    return {
        "pixel_values": torch.zeros(batch_size, *views, 3, side, side),
        "target_pixel_values": torch.zeros(batch_size, 3, target, target),
    }


def mrm_flops(model: AltaForMaskedRecordModeling, corpus: Corpus) -> int:
    """FLOPs of a train step on one frontal and its report."""
    config = model.config
    texts = text_inputs(config, 1, min(corpus.report_tokens, config.max_report_length))
    return count_flops(lambda: model(**texts, **image_inputs(config, 1, ())).loss.backward())


def alta_flops(model: AltaForPreTraining, corpus: Corpus, batch_size: int = PUBLISHED_BATCH) -> float:
    """FLOPs of a train step for one study among `batch_size` to contrast with.

    The towers cost as much for every study, the contrast as much for every pair of a study and a report: steps of one
    and of two studies tell both apart.
    """
    one, two = (alta_step_flops(model, corpus, size) for size in (1, 2))
    of_a_pair = (two - 2 * one) / 2
    return one + of_a_pair * (batch_size - 1)


def alta_step_flops(model: AltaForPreTraining, corpus: Corpus, batch_size: int) -> int:
    config = model.config
    texts = text_inputs(config, batch_size, min(corpus.report_tokens, config.max_report_length))
    view_mask = (torch.arange(4) < corpus.num_views).expand(batch_size, -1)
    inputs = texts | image_inputs(config, batch_size, (4,)) | {"view_mask": view_mask}
    return count_flops(lambda: model(input_ids=texts["masked_input_ids"], **inputs).loss.backward())


def trainable_share(model: nn.Module) -> float:
    """Trained parameters over all of a model."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained) / sum(size for size, _ in sizes)


def compare(alta: int | float, mrm: int, recipes: dict[str, TrainArguments], corpus: Corpus) -> dict[str, float]:
    """FLOPs of a study in both stages and their ratios over all epochs."""
    ratio = alta * recipes["alta"].num_epochs / (mrm * recipes["mrm"].num_epochs)
    return {
        "alta_gflops_per_study": alta / 1e9,
        "mrm_gflops_per_study": mrm / 1e9,
        "flops_ratio": ratio,
        "flops_ratio_if_mrm_sees_every_view": ratio / corpus.num_views,
        "alta_epochs_for_a_fifth": int(0.2 / ratio * recipes["alta"].num_epochs),
    }


def count_variants(recipes: dict[str, TrainArguments], corpora: list[Corpus]) -> list[dict[str, Any]]:
    """The comparison as published and with present views only, for every corpus."""
    mrm = build_mrm(recipes["mrm"])
    of_mrm = [mrm_flops(mrm, corpus) for corpus in corpora]
    variants = []
    for missing_views in ("token", "skip"):
        alta = build_alta(recipes["alta"], missing_views=missing_views)
        for corpus, flops in zip(corpora, of_mrm, strict=True):
            described = {"missing_views": missing_views, **asdict(corpus)}
            variants.append(described | compare(alta_flops(alta, corpus), flops, recipes, corpus))
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__.splitlines()[1])
    parser.add_argument("--num-views", type=int, choices=range(1, 5), default=2, help="of the mean study (default: 2)")
    parser.add_argument(
        "--report-tokens", type=int, nargs="+", default=[90, 54], help="of the mean report, the first for the ratio"
    )
    args = parser.parse_args()
    recipes = {name: read_recipe(RECIPES / f"{name}_mimic.yaml") for name in ("alta", "mrm")}
    variants = count_variants(recipes, [Corpus(args.num_views, tokens) for tokens in args.report_tokens])
    as_published = AltaConfig(**recipes["alta"].model).missing_views
    published = next(variant for variant in variants if variant["missing_views"] == as_published)
    result = {
        "trainable_share": trainable_share(build_alta(recipes["alta"])),
        "flops_ratio": published["flops_ratio"],
        "epochs": {name: recipe.num_epochs for name, recipe in recipes.items()},
        "contrastive_batch": PUBLISHED_BATCH,
        "variants": variants,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()


__all__ = ["Corpus", "alta_flops", "build_alta", "build_mrm", "compare", "mrm_flops", "trainable_share"]
