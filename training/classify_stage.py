"""The stage `classify`: a classifier of the records' labels over a trained tower."""

import warnings
from copy import deepcopy
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import get_peft_config, get_peft_model
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from eval.classification import classification_metrics, classify_studies
from modeling_alta import AltaConfig, AltaForImageClassification, AltaProcessor
from modeling_alta.export_alta import export_adapter, export_full
from processing.batches.augmentation import StudyTransform
from processing.batches.label_batch import LabelCollator, LabelledStudies, count_labels, label_settings
from recipes.recipe import TrainArguments
from training.run import Run
from training.shares import share_between_processes
from training.stage import Records, Stage, base_config, read_studies, training_records, validation_records


class ClassifyStage(Stage):
    """Labels of studies, by linear probe, new adapters or full fine-tuning; validated by the macro AUROC."""

    metric = "macro_auroc"

    def build_model(self, args: TrainArguments, accelerator: Accelerator) -> tuple[nn.Module, AltaProcessor]:
        present = list(count_labels(training_records(args)))
        names = args.labels or present
        _check_present(names, present, args.split)
        settings = {**args.model, **label_settings(names), "problem_type": args.problem_type}
        model = AltaForImageClassification.from_pretrained(args.base, **settings)
        processor = AltaProcessor.from_pretrained(args.base)
        if args.tuning == "linear_probe":
            model.freeze_tower()
        elif args.tuning == "adapter":
            if accelerator.is_main_process:
                export_full(model, processor, labelled_base(args))  # the adapter needs one that knows the labels
            model = get_peft_model(model, get_peft_config(dict(args.peft)))
        return model, processor

    def build_studies(
        self, args: TrainArguments, config: AltaConfig, processor: AltaProcessor, records: Records, augment: bool
    ) -> tuple[LabelledStudies, LabelCollator]:
        size = config.vision_config.image_size
        transform = StudyTransform(size, target_size=size, do_augment=augment)
        studies = LabelledStudies(records, transform, args.seed, unlabelled=args.unlabelled)
        return studies, LabelCollator(label_names(config), config.problem_type)

    def validate(self, run: Run) -> dict[str, float]:
        records = validation_records(run)
        model, names = Classifier(run), label_names(base_config(run.unwrapped))

        def classify(part: list[int]) -> torch.Tensor:
            return classify_studies(model, run.processor, read_studies(records.select(part)))

        scores = share_between_processes(run, list(range(len(records))), classify)
        labels = list(records["labels"])
        results = classification_metrics(scores, names, labels, run.args.unlabelled, bootstrap_samples=1)
        figures = {f"auroc/{label}": result["auroc"]["value"] for label, result in results["labels"].items()}
        macro = {name: results[name]["value"] for name in ("macro_auroc", "macro_average_precision") if results[name]}
        return figures | macro

    def export(self, run: Run, model: nn.Module, folder: Path) -> None:
        if run.args.tuning == "adapter":
            export_adapter(model, run.processor, folder / "adapter", base=labelled_base(run.args))
            if model.get_base_model().config.use_adapters:
                return
            model = deepcopy(model).merge_and_unload()
        export_full(model, run.processor, folder / "full")


def _check_present(names: list[str], present: list[str], split: str) -> None:
    """An error if no study has any of the labels; a warning if none has one of them, which nothing then teaches."""
    absent = [name for name in names if name not in present]
    if absent == names:
        raise ValueError(f"`labels` must hold one of those of the split {split!r}, {present}, got {names}.")
    if absent:
        warnings.warn(f"No study of the split {split!r} has the `labels` {absent}; it has {present}.", stacklevel=2)


class Classifier(nn.Module):
    """The model of a run, with the precision that the run trains in."""

    def __init__(self, run: Run):
        super().__init__()
        self.model, self.accelerator = run.model, run.accelerator
        self.config = base_config(run.unwrapped)
        self.device, self.dtype = run.accelerator.device, torch.float32

    def forward(self, **inputs: torch.Tensor) -> ImageClassifierOutput:
        with self.accelerator.autocast():
            return self.model(**inputs)


def labelled_base(args: TrainArguments) -> str:
    """Where the base with the classifier's labels lies, over which an adapter is put."""
    return str(Path(args.output_dir, "base").resolve())


def label_names(config: AltaConfig) -> list[str]:
    """The labels in the order of the logits, which `label2id` loses when a config is read from its file."""
    return [config.id2label[index] for index in range(config.num_labels)]


__all__ = ["ClassifyStage"]
