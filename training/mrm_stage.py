"""The stage `mrm`: masked record modelling of single frontals, which pretrains the vision tower."""

from pathlib import Path

import torch
from accelerate import Accelerator

from eval.embeddings import evaluating
from modeling_alta import AltaConfig, AltaForMaskedRecordModeling, AltaProcessor
from modeling_alta.convert_alta import load_mae, read_tokenizer
from modeling_alta.export_alta import build_processor
from processing.batches.batch_order import BatchOrder
from processing.batches.training_batch import MrmCollator, TrainingStudies
from processing.batches.training_loader import make_training_loader
from recipes.recipe import TrainArguments
from training.run import Run
from training.stage import Records, Stage, study_transform, validation_records


class MrmStage(Stage):
    """Masked record modelling; validated by its losses."""

    metric = "loss"
    lower_is_better = ("loss", "image_reconstruction_loss", "masked_report_loss")

    def build_model(
        self, args: TrainArguments, accelerator: Accelerator
    ) -> tuple[AltaForMaskedRecordModeling, AltaProcessor]:
        tokenizer = read_tokenizer(args.text_encoder)
        settings = {"max_report_length": 100, **args.model, "use_adapters": False}
        settings["text_config"] = {**settings.get("text_config", {}), "vocab_size": len(tokenizer)}
        model = AltaForMaskedRecordModeling(AltaConfig(**settings))
        if args.mae:
            load_mae(model, args.mae)
        return model, build_processor(model.config, tokenizer)

    def build_studies(
        self, args: TrainArguments, config: AltaConfig, processor: AltaProcessor, records: Records, augment: bool
    ) -> tuple[TrainingStudies, MrmCollator]:
        transform = study_transform(config, augment)
        studies = TrainingStudies(records, transform, args.seed, views=["current_frontal"])
        return studies, MrmCollator(processor, config)

    @torch.no_grad()
    def validate(self, run: Run) -> dict[str, float]:
        args, accelerator = run.args, run.accelerator
        records = validation_records(run)
        studies, collator = self.build_studies(args, run.unwrapped.config, run.processor, records, augment=False)
        batch_size = min(args.batch_size, len(studies) // accelerator.num_processes)
        if not batch_size:
            raise ValueError(
                f"`validation_split` must hold a study for every process, got {len(studies)} in "
                f"{args.validation_split!r}."
            )
        order = BatchOrder(len(studies), batch_size, args.seed, accelerator.num_processes, accelerator.process_index)
        sums = torch.zeros(len(self.lower_is_better), device=accelerator.device)
        with evaluating(run.model):
            for batch in make_training_loader(studies, order, collator, num_workers=0):
                inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
                output = run.model(**{name: value.to(accelerator.device) for name, value in inputs.items()})
                sums += torch.stack([output[name].float() for name in self.lower_is_better])
        means = accelerator.reduce(sums / len(order), reduction="mean").tolist()
        return dict(zip(self.lower_is_better, means, strict=True))

    def export(self, run: Run, model: AltaForMaskedRecordModeling, folder: Path) -> None:
        model.save_pretrained(folder / "model")
        run.processor.save_pretrained(folder / "model")


__all__ = ["MrmStage"]
