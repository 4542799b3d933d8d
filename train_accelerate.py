"""Study records → trained model: `accelerate launch train_accelerate.py --config recipes/alta_mimic.yaml`.

The stage `mrm` trains a vision tower by masked record modelling; `alta` freezes it and trains adapters over it.
"""

import argparse
import importlib.metadata
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, gather_object, set_seed
from peft import PeftModel, get_peft_config, get_peft_model
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from eval.protocol import preprocessing_sha256, write_json
from modeling_alta import AltaConfig, AltaForMaskedRecordModeling, AltaForPreTraining, AltaProcessor
from modeling_alta.convert_alta import convert_mrm, load_mae, read_tokenizer
from modeling_alta.export_alta import build_processor, export_adapter, export_full
from processing.augmentation import StudyTransform
from processing.study_records import load_study_records
from processing.training_batch import AltaCollator, MrmCollator, TrainingStudies
from recipes.recipe import TrainArguments, read_recipe


LOG_NAME = "training_log.jsonl"
PACKAGES = ("accelerate", "datasets", "peft", "timm", "torch", "transformers")


class TrainProgress:
    """Where a run stands; saved with every checkpoint."""

    def __init__(self):
        self.epoch, self.batch, self.step = 0, 0, 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


@dataclass
class Run:
    """What a training loop works on, prepared by accelerate."""

    args: TrainArguments
    accelerator: Accelerator
    model: torch.nn.Module
    processor: AltaProcessor
    studies: TrainingStudies
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    progress: TrainProgress


def main(args: TrainArguments) -> None:
    run = build_run(args)
    resume(run)
    log = TrainLog(run)
    for epoch in range(run.progress.epoch, args.num_epochs):
        run.studies.set_epoch(epoch)
        run.loader.set_epoch(epoch)
        train_epoch(run, log)
        run.progress.epoch, run.progress.batch = epoch + 1, 0
    log.close()
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        save_for_hub(run, log.last)
    run.accelerator.end_training()


def build_run(args: TrainArguments) -> Run:
    accelerator = build_accelerator(args)
    set_seed(args.seed)
    model, processor = build_mrm(args) if args.stage == "mrm" else build_alta(args, accelerator)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    studies, loader = build_loader(args, model, processor)
    optimizer = build_optimizer(args, model, accelerator.num_processes)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    scheduler = build_scheduler(args, optimizer, len(loader))
    progress = TrainProgress()
    accelerator.register_for_checkpointing(scheduler, progress)
    return Run(args, accelerator, model, processor, studies, loader, optimizer, scheduler, progress)


def build_accelerator(args: TrainArguments) -> Accelerator:
    accelerator = Accelerator(
        # Without it, two processes on a machine without an accelerator would train apart, each as if alone.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        log_with=args.log_with,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=args.output_dir),
    )
    if args.log_with:
        accelerator.init_trackers("tracking")
        # accelerate only warns, and the run would go on unwatched.
        if not accelerator.trackers:
            raise ImportError(f"`log_with` needs the package of {args.log_with}: pip install {args.log_with}")
    return accelerator


def build_mrm(args: TrainArguments) -> tuple[AltaForMaskedRecordModeling, AltaProcessor]:
    tokenizer = read_tokenizer(args.text_encoder)
    settings = {"max_report_length": 100, **args.model, "use_adapters": False}
    settings["text_config"] = {**settings.get("text_config", {}), "vocab_size": len(tokenizer)}
    model = AltaForMaskedRecordModeling(AltaConfig(**settings))
    if args.mae:
        load_mae(model, args.mae)
    return model, build_processor(model.config, tokenizer)


def build_alta(args: TrainArguments, accelerator: Accelerator) -> tuple[PeftModel, AltaProcessor]:
    """The frozen base, written to `output_dir/base` if it is new, and the adapter over it."""
    if args.base is None:
        model, _ = convert_mrm(args.mrm, args.text_encoder, args.vision_heads, args.decoder_heads, **args.model)
        tokenizer = read_tokenizer(args.text_encoder, model.config.text_config.vocab_size)
        processor = build_processor(model.config, tokenizer)
        if accelerator.is_main_process:
            export_full(model, processor, base_folder(args))
    else:
        model = AltaForPreTraining.from_pretrained(args.base, **args.model)
        processor = AltaProcessor.from_pretrained(args.base)
    if args.adapter is not None:
        return PeftModel.from_pretrained(model, args.adapter, is_trainable=True), processor
    return get_peft_model(model, get_peft_config(dict(args.peft))), processor


def base_folder(args: TrainArguments) -> str:
    """Where the frozen base lies: absolute for a folder, so that the adapter finds it from anywhere."""
    if args.base is not None:
        return str(Path(args.base).resolve()) if Path(args.base).exists() else args.base
    return str(Path(args.output_dir, "base").resolve())


def build_loader(args: TrainArguments, model, processor: AltaProcessor) -> tuple[TrainingStudies, DataLoader]:
    config = model.config if args.stage == "mrm" else model.get_base_model().config
    transform = StudyTransform(config.vision_config.image_size, config.target_image_size, do_augment=args.augment)
    records = load_study_records(args.records, args.split)
    if args.stage == "mrm":
        studies = TrainingStudies(records, transform, args.seed, views=["current_frontal"])
        collator = MrmCollator(processor, config)
    else:
        studies = TrainingStudies(records, transform, args.seed)
        collator = AltaCollator(processor, config)
    if len(studies) < args.batch_size:
        raise ValueError(
            f"`batch_size` must be at most the {len(studies)} studies of {args.split}, got {args.batch_size}."
        )
    workers = {"num_workers": args.num_workers, "persistent_workers": args.num_workers > 0}
    return studies, DataLoader(
        studies, batch_size=args.batch_size, shuffle=True, drop_last=True, collate_fn=collator, **workers
    )


def build_optimizer(args: TrainArguments, model, num_processes: int) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: not on biases, norms, tokens and scales."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim in (2, 4)], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]
    effective_batch = args.batch_size * num_processes * args.gradient_accumulation_steps
    return torch.optim.AdamW(groups, lr=args.base_learning_rate * effective_batch / 256, betas=tuple(args.betas))


def build_scheduler(args: TrainArguments, optimizer, batches_per_epoch: int):
    """Linear warm-up, then a cosine to zero at `schedule_epochs`, in optimizer steps."""
    steps = steps_per_epoch(args, batches_per_epoch)
    warmup_steps, schedule_steps = round(args.warmup_epochs * steps), args.schedule_epochs * steps
    return get_cosine_schedule_with_warmup(optimizer.optimizer, warmup_steps, schedule_steps)


def steps_per_epoch(args: TrainArguments, batches_per_epoch: int) -> int:
    return math.ceil(batches_per_epoch / args.gradient_accumulation_steps)


def train_epoch(run: Run, log: "TrainLog") -> None:
    accelerator, progress = run.accelerator, run.progress
    run.model.train()
    loader = skip_first_batches(run.loader, progress.batch) if progress.batch else run.loader
    for batch in loader:
        study_ids, _ = batch.pop("study_id"), batch.pop("skipped")
        seed_batch(run)
        with accelerator.accumulate(run.model):
            output = run.model(**batch)
            check_finite(accelerator, output.loss, study_ids)
            accelerator.backward(output.loss)
            if accelerator.sync_gradients and run.args.max_gradient_norm is not None:
                accelerator.clip_grad_norm_(run.model.parameters(), run.args.max_gradient_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
        progress.batch += 1
        if accelerator.sync_gradients:
            run.scheduler.step()
            progress.step += 1
            log.add(output)
            if run.args.checkpoint_every and progress.step % run.args.checkpoint_every == 0:
                save_checkpoint(run)


def seed_batch(run: Run) -> None:
    """Masks and dropout depend on the place in the run alone, so that a resumed run repeats them."""
    place = [run.args.seed, run.progress.epoch, run.progress.batch, run.accelerator.process_index]
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))


def check_finite(accelerator: Accelerator, loss: torch.Tensor, study_ids: list[str]) -> None:
    """
    Raises:
        FloatingPointError: on every process, naming the studies of the batch, if a process has a non-finite loss.
    """
    is_bad = (~torch.isfinite(loss.detach())).float()
    if accelerator.reduce(is_bad, reduction="sum").item():
        raise FloatingPointError(f"The loss is not finite. Studies of the batch: {gather_object(study_ids)}.")


class TrainLog:
    """Mean losses of all processes, every `log_every` steps, in `training_log.jsonl`, the tracker and a bar."""

    def __init__(self, run: Run):
        self.run, self.last, self.sums = run, {}, []
        self.path = Path(run.args.output_dir, LOG_NAME)
        self.total = run.args.num_epochs * steps_per_epoch(run.args, len(run.loader))
        self.bar = tqdm(
            desc=f"Stage {run.args.stage}",
            total=self.total,
            initial=run.progress.step,
            unit="step",
            disable=not run.accelerator.is_local_main_process,
        )
        if run.accelerator.is_main_process:
            self._keep_rows_before(run.progress.step)

    def add(self, output) -> None:
        self.names = [name for name in output if name.endswith("loss")]
        self.sums.append(torch.stack([output[name].detach().float() for name in self.names]))
        self.bar.update()
        if self.run.progress.step % self.run.args.log_every == 0 or self.run.progress.step == self.total:
            self._write()

    def close(self) -> None:
        self.bar.close()

    def _write(self) -> None:
        means = self.run.accelerator.reduce(torch.stack(self.sums).mean(0), reduction="mean").tolist()
        self.last, self.sums = dict(zip(self.names, means, strict=True)), []
        row = self.last | {"learning_rate": self.run.scheduler.get_last_lr()[0]}
        self.run.accelerator.log(row, step=self.run.progress.step)
        self.bar.set_postfix(loss=f"{row['loss']:.3f}")
        if self.run.accelerator.is_main_process:
            place = {"step": self.run.progress.step, "epoch": self.run.progress.epoch}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(place | row) + "\n")

    def _keep_rows_before(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() and step else []
        kept = [row for row in rows if json.loads(row)["step"] <= step]
        self.path.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")


def save_checkpoint(run: Run) -> None:
    """Write aside and rename, so that a checkpoint that is there is whole; the last `keep_checkpoints` stay."""
    folder = Path(run.args.output_dir, "checkpoints")
    unfinished = folder / "unfinished"
    run.accelerator.save_state(str(unfinished))
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        final = folder / f"step_{run.progress.step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        for old in sorted(folder.glob("step_*"))[: -run.args.keep_checkpoints]:
            shutil.rmtree(old)
    run.accelerator.wait_for_everyone()


def resume(run: Run) -> None:
    """
    Raises:
        FileNotFoundError: if `resume` names a folder that is not there.
    """
    if run.args.resume is None:
        return
    found = sorted(Path(run.args.output_dir, "checkpoints").glob("step_*"))
    path = (found[-1] if found else None) if run.args.resume == "latest" else Path(run.args.resume)
    if path is None:
        run.accelerator.print("No checkpoint to resume from: starting anew.")
        return
    if not path.is_dir():
        raise FileNotFoundError(f"`resume` must be 'latest' or a checkpoint folder, got {path}, which does not exist.")
    run.accelerator.load_state(str(path))


def save_for_hub(run: Run, losses: dict[str, float]) -> None:
    """Write what the stage was for, and `metrics.json`, from which the card is filled."""
    model, output_dir = run.accelerator.unwrap_model(run.model), Path(run.args.output_dir)
    write_json(describe_run(run, model, losses), output_dir / "metrics.json")
    if run.args.stage == "mrm":
        model.save_pretrained(output_dir / "model")
        run.processor.save_pretrained(output_dir / "model")
        return
    export_adapter(model, run.processor, output_dir / "adapter", base=base_folder(run.args))
    if not model.get_base_model().config.use_adapters:
        export_full(model.merge_and_unload(), run.processor, output_dir / "full")


def describe_run(run: Run, model: torch.nn.Module, losses: dict[str, float]) -> dict[str, Any]:
    summary = Path(run.args.records, "summary.json")
    return {
        "run": {
            "recipe": asdict(run.args),
            "processes": run.accelerator.num_processes,
            "steps": run.progress.step,
            "seed": run.args.seed,
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "parameters": count_parameters(model),
        "training": losses,
        "records": json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {},
        "preprocessing_sha256": preprocessing_sha256(run.processor),
    }


def count_parameters(model: torch.nn.Module) -> dict[str, int | float]:
    """Trained parameters and all of the model; the untrained copies that PEFT keeps aside are not part of it."""
    counted = [p for name, p in model.named_parameters() if ".original_module." not in name]
    trainable = sum(p.numel() for p in counted if p.requires_grad)
    total = sum(p.numel() for p in counted)
    return {"total": total, "trainable": trainable, "trainable_share": trainable / total}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a stage of ALTA by a recipe.")
    parser.add_argument("--config", required=True, type=Path, help="recipe: a YAML file of recipes/")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings in place of the recipe's")
    command = parser.parse_args()
    try:
        recipe = read_recipe(command.config, command.overrides)
    except ValueError as error:
        parser.error(str(error))
    main(recipe)
