"""The two jobs of the experiment: what a seed's arms share, and one arm. Each runs alone in a worker process."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from eval.prompts import load_prompts
from eval.protocol import write_json
from evidence.arms import ARMS
from evidence.measures import measure
from evidence.models import base_model, build_model
from evidence.settings import Settings
from evidence.studies import Studies, keep_frontals, load_studies, sample_batches
from evidence.training import train
from modeling_alta import AltaConfig, AltaForMaskedRecordModeling
from modeling_alta.convert_alta import read_tokenizer
from processing.batches.training_batch import AltaCollator, MrmCollator
from processing.covid_cxr import prepare_covid_cxr
from processing.phantom import prepare_phantom
from processing.records.study_records import load_study_records
from processing.text_encoder import ReportEncoder, pretrain_text_encoder, train_tokenizer
from training.stage import count_parameters


__all__ = ["CORPORA", "prepare_seed", "run_arm"]

# Corpus → its prompts and the splits whose studies are the candidates.
CORPORA = {
    "phantom": (Path("eval/prompts/phantom.json"), ("test",)),
    # Few studies, and nothing is chosen on it: the validation split is unseen too.
    "covid_cxr": (Path("eval/prompts/covid_cxr.json"), ("validation", "test")),
}
PREPARED_NAME = "prepared.json"
CROP_MARGIN = 8 / 7  # the transform crops this much off


def prepare_seed(
    corpus: str, seed: int, settings: Settings, work: Path, covid_root: Path | None, reuse: bool = False
) -> dict[str, Any]:
    """
    Make the records, the text encoder and the vision tower of a seed in `work/<corpus>-<seed>`.

    Args:
        corpus (`str`), seed (`int`), settings ([`Settings`]), work (`Path`).
        covid_root (`Path`, *optional*): folder of the COVID-19 collection.
        reuse (`bool`): take what lies there instead, if it was finished with the same settings.

    Returns:
        `dict`: `settings` (those that decided it), `records` (their summary), `mrm` (what `train` returns), `seconds`.
    """
    start, folder = time.monotonic(), seed_folder(work, corpus, seed)
    if reuse and (folder / PREPARED_NAME).is_file():
        prepared = read_prepared(work, corpus, seed)
        if prepared.get("settings") == settings.of_preparation:
            return prepared
    (folder / PREPARED_NAME).unlink(missing_ok=True)
    records = _make_records(corpus, seed, settings, folder / "records", covid_root)
    _make_text_encoder(folder, settings, seed)
    studies = load_studies(folder / "records", ("train",), settings)
    torch.save(studies, folder / "train.pt")
    mrm = _make_vision_tower(folder, studies, settings, seed)
    result = {"settings": settings.of_preparation, "records": records, "mrm": mrm}
    result["seconds"] = time.monotonic() - start
    write_json(result, folder / PREPARED_NAME)
    return result


def seed_folder(work: Path, corpus: str, seed: int) -> Path:
    """Where a seed's part lies."""
    return work / f"{corpus}-{seed}"


def _make_records(corpus, seed, settings, output, covid_root):
    if corpus == "covid_cxr":
        return prepare_covid_cxr(covid_root, output)
    return prepare_phantom(output, settings.num_studies, seed, round(CROP_MARGIN * settings.image_size))


def _make_text_encoder(folder: Path, settings: Settings, seed: int) -> None:
    reports = [report for report in load_study_records(folder / "records", "train")["report"] if report]
    tokenizer = train_tokenizer(reports, settings.vocab_size, settings.max_report_length)
    model, _ = pretrain_text_encoder(reports, tokenizer, seed=seed, **settings.text_encoder)
    tokenizer.save_pretrained(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder")


def _make_vision_tower(folder: Path, studies: Studies, settings: Settings, seed: int) -> dict[str, Any]:
    tokenizer = read_tokenizer(folder / "text_encoder")
    text_config = {**settings.model["text_config"], "vocab_size": len(tokenizer)}
    fields = {**settings.model, "text_config": text_config, "use_adapters": False}
    config = AltaConfig(**fields)
    torch.manual_seed(seed)
    model = AltaForMaskedRecordModeling(config)
    _start_report_decoder(model, folder / "text_encoder")
    studies = keep_frontals(studies)
    collator = MrmCollator(tokenizer, model.config)
    batch_size = min(settings.mrm_batch_size, len(studies.samples))
    batches = sample_batches(studies, collator, batch_size, seed)
    result = train(model, batches, settings.mrm_steps, settings.mrm_learning_rate, seed)
    model.save_pretrained(folder / "mrm")
    return result


def _start_report_decoder(model: AltaForMaskedRecordModeling, text_encoder: Path) -> None:
    """Start the decoder of reports from the text encoder: from random weights it takes most of so short a stage."""
    pretrained = ReportEncoder.from_pretrained(text_encoder)
    model.report_decoder.load_state_dict(pretrained.bert.state_dict())
    head = pretrained.cls.predictions
    model.report_head.dense.load_state_dict(head.transform.dense.state_dict())
    model.report_head.layer_norm.load_state_dict(head.transform.LayerNorm.state_dict())
    model.report_head.bias.data.copy_(head.bias.data)


def run_arm(
    corpus: str,
    seed: int,
    name: str,
    settings: Settings,
    work: Path,
    learning_rate: float,
    on_validation: bool = False,
) -> dict[str, Any]:
    """
    Train one arm on a prepared seed and measure it on unseen studies, with `on_validation` those of that split.

    Returns:
        `dict`: what was run, `parameters`, `training`, `figures`, and `seen`: figures of as many studies trained on.
    """
    arm, folder = ARMS[name], seed_folder(work, corpus, seed)
    tokenizer = read_tokenizer(folder / "text_encoder")
    tokenizer.model_max_length = settings.max_report_length
    prompts, splits = CORPORA[corpus]
    splits = ("validation",) if on_validation else splits
    model = build_model(arm, settings, folder, seed)
    studies = torch.load(folder / "train.pt", weights_only=False)
    studies = (keep_frontals(studies) if arm.only_frontal else studies)[: arm.num_studies]
    batches = _batches(studies, tokenizer, model, settings, seed)
    training = train(
        model, batches, settings.steps, learning_rate, seed, settings.learning_rates["all"], arm.slow_heads
    )
    unseen = load_studies(folder / "records", splits, settings, settings.num_candidates * settings.num_groups)
    unseen = keep_frontals(unseen) if arm.only_frontal else unseen
    prompts = load_prompts(prompts)

    def figures_of(studies: Studies) -> dict[str, Any]:
        return measure(base_model(model), tokenizer, studies, prompts, settings.num_candidates)

    return {
        "corpus": corpus,
        "seed": seed,
        "arm": name,
        "learning_rate": learning_rate,
        "parameters": count_parameters(model),
        "training": training,
        "figures": figures_of(unseen),
        "seen": figures_of(studies[: len(unseen.samples)]),
    }


def _batches(studies: Studies, tokenizer: PreTrainedTokenizerBase, model, settings: Settings, seed: int):
    collator = AltaCollator(tokenizer, base_model(model).config)
    return sample_batches(studies, collator, min(settings.batch_size, len(studies.samples)), seed)


def read_prepared(work: Path, corpus: str, seed: int) -> dict[str, Any]:
    """What `prepare_seed` returned."""
    return json.loads((seed_folder(work, corpus, seed) / PREPARED_NAME).read_text(encoding="utf-8"))
