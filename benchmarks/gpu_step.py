"""
How fast is a full-size train step on a GPU, what memory does it take, and what share of the card's bf16 peak is it?

`python -m benchmarks.gpu_step` prints JSON: for every number of studies, until memory runs out, and every form,
studies per second, peak memory, and the share of the peak of dense bf16 products measured beside it. A step is
forward, backward and fused AdamW under bf16 autocast with dropout, on studies of which half of the view slots are
there; `plain` is the plain form of the same model, `ours` what a recipe with `mixed_precision: bf16` and
`missing_views: skip` runs, and `compiled` the same with `torch_compile: true`.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks.flops import count_flops, matmul_peak, synchronized, time_call, utilisation
from benchmarks.train_step import build_model, build_step, make_batch
from modeling_alta import similarity_alta
from training.build import compile_blocks, set_product_precision


FORMS = ("plain", "ours", "compiled")
STUDIES_MADE = 24  # that a batch repeats
PEAK_SIZE = 8192  # of the products that measure the peak: large enough to fill a large card


def prepare(form: str, num_studies: int, mean_length: int) -> Callable[[], None]:
    """A step of a form on the GPU, as a function without arguments."""
    with torch.device("cuda"):
        model = build_model()
    batch = make_batch(model.config, STUDIES_MADE, mean_length, "half")
    if form != "plain":  # as the collator of training gives them
        batch |= {name: batch[name][..., :1, :, :] for name in ("pixel_values", "target_pixel_values")}
    batch = {name: torch.cat([value.cuda()] * (num_studies // STUDIES_MADE)) for name, value in batch.items()}
    if form == "compiled":
        compile_blocks(model)
    return synchronized(build_step("plain" if form == "plain" else "ours", model, batch, torch.bfloat16), "cuda")


def count(form: str, num_studies: int, mean_length: int) -> int:
    """FLOPs of a step, without what hides them: compiled graphs, and the kernels of the local loss."""
    with mock.patch.object(similarity_alta, "is_fusable", lambda *embeds: False):
        return count_flops(prepare("plain" if form == "plain" else "ours", num_studies, mean_length))


def count_if_it_fits(form: str, num_studies: int, mean_length: int) -> int | None:
    """The same, `None` where the step that is counted takes more memory than there is; that of the form may not."""
    try:
        return count(form, num_studies, mean_length)
    except torch.cuda.OutOfMemoryError:
        return None


def measure(form: str, num_studies: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a form at one size."""
    step = prepare(form, num_studies, args.mean_length)
    for _ in range(args.warmup):
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(time_call(step) for _ in range(args.rounds))
    memory = torch.cuda.max_memory_allocated()
    del step
    flops = count_if_it_fits(form, num_studies, args.mean_length)
    peak = matmul_peak(torch.bfloat16, PEAK_SIZE, device="cuda")
    return {
        "form": form,
        "num_studies": num_studies,
        "milliseconds": 1e3 * seconds,
        "studies_per_second": num_studies / seconds,
        "peak_memory_gib": memory / 2**30,
        "tflops": flops and flops / 1e12,
        "matmul_peak_tflops": peak / 1e12,
        "utilisation": flops and utilisation(flops, seconds, peak),
    }


def measure_sizes(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all forms at all sizes; a form is left out from the size on that does not fit."""
    rows, forms = [], list(args.forms)
    for num_studies in args.num_studies:
        for form in list(forms):
            try:
                rows.append(measure(form, num_studies, args))
            except torch.cuda.OutOfMemoryError:
                rows.append({"form": form, "num_studies": num_studies, "out_of_memory": True})
                forms.remove(form)
            torch.cuda.empty_cache()
            print(json.dumps(rows[-1]), file=sys.stderr)  # at once: a run may be cut off
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Full-size bf16 train step on a GPU; prints JSON.")
    parser.add_argument("--num-studies", nargs="+", type=int, default=[24, 96, 192, 384, 768], help="ascending")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="default: all")
    parser.add_argument("--mean-length", type=int, default=90, help="tokens of a report (default: 90)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones (default: 3)")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps, of which the median counts (default: 10)")
    args = parser.parse_args()
    if any(number % STUDIES_MADE for number in args.num_studies):
        parser.error(f"`--num-studies` must be multiples of {STUDIES_MADE}, got {args.num_studies}")
    if not torch.cuda.is_available():
        parser.error("needs a GPU, and torch finds none here: `python -m benchmarks.train_step` measures on CPUs")
    set_product_precision("bf16", "cuda")
    versions = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps(versions | {"steps": measure_sizes(args)}, indent=2))


if __name__ == "__main__":
    main()
