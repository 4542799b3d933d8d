"""
How fast do study records become augmented training batches on one core, and where does the time go?

`OMP_NUM_THREADS=1 python -m benchmarks.input` prints JSON: studies per second of processor time, without workers and
with one thread, of this repository's input, of the same from records whose images are TIFF without compression, and of
the plain form (PNG, three channels from the file on, all else as torchvision gives it), which take turns in one run
and must give equal tensors; the share of each stage from PNG; and the size of the images.
With `--train-step`, also how many studies per second a full-size train step takes on `--threads` processors that do
nothing else, and how many times faster the input is.

The records are made: a current frontal and one other view of a short side of 512 pixels, as the corpora's commands
write them (PNG of about 150 KB, TIFF of 320), and reports of about 54 tokens, in batches of 8 at 448 and 224 pixels.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers import BertTokenizer

from benchmarks.radiograph import chest_like
from modeling_alta import AltaConfig, AltaForPreTraining
from modeling_alta.configuration_alta import VIEW_NAMES
from modeling_alta.image_processing_alta import IMAGE_MEAN, IMAGE_STD
from processing.batches import augmentation, training_batch
from processing.batches.augmentation import AugmentationDraw, StudyTransform, draw_augmentation
from processing.batches.batch_order import BatchOrder
from processing.batches.training_batch import AltaCollator, TrainingStudies, sample_generator
from processing.batches.training_loader import make_training_loader
from processing.engine.images import IMAGE_FORMATS, encode_image
from processing.records.record_stream import RecordStream
from processing.records.study_features import STUDY_FEATURES
from processing.records.study_records import write_study_records


BATCH_SIZE = 8
WORDS = "the lungs are clear without effusion or pneumothorax heart size is normal and".split()
STAGES = {
    "read": (RecordStream, "__getitems__"),
    "decode": (training_batch, "read_radiograph"),
    "resize": (augmentation, "crop_radiograph"),
    "affine": (augmentation, "move"),
    "light": (augmentation, "relight"),
    "tensor": (augmentation, "normalize_radiograph"),
    "resize to encoder": (augmentation, "resize_to_encoder"),
    "report": (training_batch, "encode_reports"),
    "stack": (training_batch, "stack_images"),
}


def make_images(image_format: str) -> list[dict[str, Any]]:
    """Three chest-like radiographs as the records hold them."""
    return [encode_image(chest_like(624, 512, grain), image_format=image_format) for grain in (1.5, 2, 2.5)]


def write_records(folder: Path, num_studies: int, image_format: str = "png") -> str:
    """Write records with half of the views, and give the split that they are in."""
    images = make_images(image_format)
    report = ". ".join(" ".join(WORDS) for _ in range(4))
    records = []
    for index in range(num_studies):
        views = {VIEW_NAMES[0]: images[index % 3], VIEW_NAMES[1 + index % 3]: images[(index + 1) % 3]}
        text = {"study_id": f"s{index}", "patient_id": "p", "report": report}
        records.append(dict.fromkeys(STUDY_FEATURES) | views | text)
    splits = write_study_records(records, folder)["splits"]
    return next(name for name, counts in splits.items() if counts["records"])


def build_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def plain_sample(record: dict[str, Any], seed: int) -> dict[str, Any]:
    """The sample of a record in epoch 0, with images of three channels from the file on."""
    generator = sample_generator(seed, 0, record["study_id"])
    draws = {"frontal": draw_augmentation(generator), "lateral": draw_augmentation(generator)}
    sample = {
        "pixel_values": torch.zeros(4, 3, 224, 224),
        "target_pixel_values": torch.zeros(3, 448, 448),
        "view_mask": torch.tensor([record[name] is not None for name in VIEW_NAMES]),
    }
    for position, name in enumerate(VIEW_NAMES):
        if record[name] is not None:
            size = 448 if position == 0 else 224
            pixels = plain_image(record[name]["bytes"], size, draws[name.split("_")[1]])
            if position == 0:
                sample["target_pixel_values"] = pixels
                pixels = augmentation.resize_to_encoder(pixels, 224)
            sample["pixel_values"][position] = pixels
    report = training_batch.shuffle_sentences(record["report"], generator)
    mask_seed, patch_seed = torch.randint(2**62, (2,), generator=generator).tolist()
    seeds = {"mask_seed": mask_seed, "patch_seed": patch_seed}
    return {**sample, **seeds, "study_id": record["study_id"], "report": report, "skipped": []}


def plain_image(content: bytes, size: int, draw: AugmentationDraw) -> torch.Tensor:
    """The stock transforms, one after the other."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = tvF.resize(image, [size * 8 // 7], interpolation=InterpolationMode.BICUBIC)
    image = tvF.center_crop(image, [size, size])
    translate = [round(draw.translate_x * size), round(draw.translate_y * size)]
    shear = [draw.shear, 0.0]
    image = tvF.affine(image, draw.angle, translate, draw.scale, shear, interpolation=InterpolationMode.BILINEAR)
    image = tvF.adjust_contrast(tvF.adjust_brightness(image, draw.brightness), draw.contrast)
    return tvF.normalize(tvF.pil_to_tensor(image) / 255, [IMAGE_MEAN] * 3, [IMAGE_STD] * 3)


def plain_batches(studies: TrainingStudies, order: BatchOrder, collator: AltaCollator) -> Iterator[dict[str, Any]]:
    for indices in order:
        records = studies.records.__getitems__(indices)
        yield collator([plain_sample(record, studies.seed) for record in records])


def compare(
    forms: dict[str, Callable[[], Iterable[dict[str, Any]]]], num_studies: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Studies per second of every form, which take turns, and how many times as many as those of the last."""
    seconds = {name: [] for name in forms}
    for _ in range(rounds):
        for name, batches in forms.items():
            seconds[name].append(_seconds(batches()))
    *_, plain = seconds.values()
    return {
        "studies_per_second": {name: round(num_studies / statistics.median(own), 1) for name, own in seconds.items()},
        "ratio": {
            name: round(statistics.median(b / a for a, b in zip(own, plain, strict=True)), 2)
            for name, own in seconds.items()
        },
    }


def check_equal(one: Iterable[dict[str, Any]], another: Iterable[dict[str, Any]]) -> None:
    """
    Raises:
        `ValueError`: if two forms do not give the same batches.
    """
    for ours, other in zip(one, another, strict=True):
        for name, value in ours.items():
            is_tensor = isinstance(value, torch.Tensor)
            is_equal = torch.equal(value.expand_as(other[name]), other[name]) if is_tensor else value == other[name]
            if not is_equal:
                raise ValueError(f"Both forms must give the same `{name}`, got others.")


def measure_stages(loader) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage for a study, and their shares; the rest is Python around them."""
    spent = Counter()
    with ExitStack() as stack:
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(mock.patch.object(owner, name, _timed(stage, getattr(owner, name), spent)))
        total = _seconds(loader)
    spent["rest"] = total - sum(spent.values())
    num_studies = BATCH_SIZE * len(loader)
    return {
        "milliseconds_per_study": {stage: round(1000 * s / num_studies, 2) for stage, s in spent.items()},
        "share": {stage: round(s / total, 3) for stage, s in spent.items()},
    }


def measure_train_step(batch: dict[str, Any], num_threads: int) -> dict[str, float]:
    """Studies per second of processor time of all threads: what they do when nothing else runs."""
    torch.set_num_threads(num_threads)
    model = AltaForPreTraining(AltaConfig(missing_views="skip"))
    model.freeze_pretrained()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    rates = {}
    for name, is_half in (("fp32", False), ("bf16", True)):
        seconds = [_step(model.train(), optimizer, inputs, is_half) for _ in range(3)]
        rates[name] = round(BATCH_SIZE * num_threads / statistics.median(seconds[1:]), 2)
    torch.set_num_threads(1)
    return rates


def _step(model: AltaForPreTraining, optimizer, inputs: dict[str, torch.Tensor], is_half: bool) -> float:
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def _seconds(batches) -> float:
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start


def _timed(stage: str, function: Callable, spent: Counter) -> Callable:
    def run(*args, **kwargs):
        start = time.process_time()
        result = function(*args, **kwargs)
        spent[stage] += time.process_time() - start
        return result

    return run


def _make_loader(folder: Path, num_studies: int, image_format: str):
    records = RecordStream(folder, write_records(folder, num_studies, image_format))
    studies, collator = TrainingStudies(records, StudyTransform()), AltaCollator(build_tokenizer(), AltaConfig())
    order = BatchOrder(len(studies), BATCH_SIZE, 0, row_groups=studies.row_groups)
    return make_training_loader(studies, order, collator)


def main() -> None:
    """Measure, and print the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--num-studies", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train-step", action="store_true", help="measure a train step too")
    parser.add_argument("--threads", type=int, default=2, help="of the train step (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loaders = {name: _make_loader(Path(folder, name), args.num_studies, name) for name in IMAGE_FORMATS}
        loader = loaders["png"]

        def plain() -> Iterator[dict[str, Any]]:
            return plain_batches(loader.dataset, loader.batch_sampler, loader.collate_fn)

        forms = {name: partial(iter, loader) for name, loader in loaders.items()} | {"plain": plain}
        for other in loaders.values():
            check_equal(other, plain())
        result = compare(forms, BATCH_SIZE * len(loader), args.rounds) | {"stages": measure_stages(loader)}
        sizes = {name: [len(image["bytes"]) for image in make_images(name)] for name in IMAGE_FORMATS}
        result["kilobytes_per_image"] = {name: round(statistics.fmean(own) / 1000) for name, own in sizes.items()}
        if args.train_step:
            rates = measure_train_step(next(iter(loader)), args.threads)
            ours = result["studies_per_second"]["png"]
            times = {name: round(ours / rate, 1) for name, rate in rates.items()}
            result["train_step"] = {"threads": args.threads, "studies_per_second": rates, "input_is_faster_by": times}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
