"""The stages `alta`, adapters over a frozen base, and `adapt`, a new adapter for a new hospital over a trained one."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_config, get_peft_model
from torch import nn

from eval.embeddings import embed_studies, embed_texts
from eval.prompts import load_prompts
from eval.retrieval import retrieval_metrics
from eval.zero_shot import prompt_scores, zero_shot_metrics
from modeling_alta import AltaConfig, AltaForPreTraining, AltaOutput, AltaProcessor
from modeling_alta.convert_alta import convert_mrm, read_tokenizer
from modeling_alta.export_alta import build_processor, export_adapter, export_full, load_whole
from processing.batches.training_batch import AltaCollator, TrainingStudies
from recipes.recipe import TrainArguments
from training.run import Run
from training.shares import share_between_processes
from training.stage import Records, Stage, base_folder, read_studies, study_transform, validation_records


NO_BOOTSTRAP = {"bootstrap_samples": 1}


class AltaStage(Stage):
    """Alignment of studies and reports; validated by retrieval, and with prompts by zero-shot classification."""

    metric = "text_to_image_recall_at_5"
    lower_is_better = ("text_to_image_median_rank", "image_to_text_median_rank")

    def build_model(self, args: TrainArguments, accelerator: Accelerator) -> tuple[PeftModel, AltaProcessor]:
        """The frozen base, written to `output_dir/base` if it is new, and the adapter over it."""
        if args.base is None:
            model, _ = convert_mrm(args.mrm, args.text_encoder, args.vision_heads, args.decoder_heads, **args.model)
            tokenizer = read_tokenizer(args.text_encoder, model.config.text_config.vocab_size)
            processor = build_processor(model.config, tokenizer)
            if accelerator.is_main_process:
                export_full(model, processor, base_folder(args))
        else:
            model = load_whole(AltaForPreTraining, args.base, "base", args.adapter, is_trainable=True, **args.model)
            processor = AltaProcessor.from_pretrained(args.base)
        if args.adapter is not None:
            return model, processor
        return get_peft_model(model, get_peft_config(dict(args.peft))), processor

    def build_studies(
        self, args: TrainArguments, config: AltaConfig, processor: AltaProcessor, records: Records, augment: bool
    ) -> tuple[TrainingStudies, AltaCollator]:
        studies = TrainingStudies(records, study_transform(config, augment), args.seed)
        return studies, AltaCollator(processor, config)

    def validate(self, run: Run) -> dict[str, float]:
        records = validation_records(run)
        reports = list(records["report"])
        model = StudyAndTextEmbedder(run)

        def embed_images(part: list[int]) -> torch.Tensor:
            return embed_studies(model, run.processor, read_studies(records.select(part)), progress=False)

        def embed(texts: list[str]) -> torch.Tensor:
            return embed_texts(model, run.processor, texts, progress=False)

        images = share_between_processes(run, list(range(len(records))), embed_images)
        texts = share_between_processes(run, reports, embed)
        figures = flat_recalls(retrieval_metrics(images, texts, reports, **NO_BOOTSTRAP))
        if run.args.validation_prompts:
            prompts = load_prompts(run.args.validation_prompts)
            scores = prompt_scores(images, share_between_processes(run, prompts.texts, embed), prompts)
            figures |= flat_aurocs(zero_shot_metrics(scores, list(records["labels"]), **NO_BOOTSTRAP))
        return figures

    def export(self, run: Run, model: PeftModel, folder: Path) -> None:
        export_adapter(model, run.processor, folder / "adapter", base=base_folder(run.args))
        if not model.get_base_model().config.use_adapters:
            export_full(deepcopy(model).merge_and_unload(), run.processor, folder / "full")


class StudyAndTextEmbedder(nn.Module):
    """The model of a run in its inference form, with the precision that the run trains in."""

    def __init__(self, run: Run):
        super().__init__()
        self.model = run.model if run.accelerator.is_fsdp2 else run.unwrapped
        self.accelerator = run.accelerator

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> AltaOutput:
        with self.accelerator.autocast():
            if pixel_values is not None:
                return AltaOutput(image_embeds=self.model.get_image_features(pixel_values, view_mask))
            return AltaOutput(text_embeds=self.model.get_text_features(input_ids, attention_mask))


def flat_recalls(results: dict[str, Any]) -> dict[str, float]:
    """`<direction>_recall_at_<k>` and `<direction>_median_rank` of what `retrieval_metrics` gives."""
    return {
        f"{direction}_{name}": figure["value"]
        for direction in ("text_to_image", "image_to_text")
        for name, figure in results[direction].items()
        if isinstance(figure, dict)
    }


def flat_aurocs(results: dict[str, Any]) -> dict[str, float]:
    """`zero_shot_auroc/<label>` and `zero_shot_macro_auroc` of what `zero_shot_metrics` gives."""
    figures = {f"zero_shot_auroc/{label}": result["auroc"]["value"] for label, result in results["labels"].items()}
    macro = results["macro_auroc"]
    return figures | ({} if macro is None else {"zero_shot_macro_auroc": macro["value"]})


__all__ = ["AltaStage"]
