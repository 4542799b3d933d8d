"""
How fast does the adapted ViT-B/16 encode radiographs, beside CLIP's vision towers of its size?

`python -m benchmarks.encode` prints JSON: for each dtype, of models with random weights at full size that take turns
in one process, images per second of frontals (median of `--rounds`), the ratio of the folded model to each of the
others (median of the rounds' ratios), images per second of studies with two views, and the share of the machine's
matmul peak, which is measured in every round, too. open_clip takes part if it is installed (extra `bench`).

On a machine that others use as well, `OMP_NUM_THREADS=1 … --processor-time` takes the time of the processor in place
of that on the wall, in which the work of others would count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.flops import count_flops, cpu_features, matmul_peak, time_call, utilisation
from modeling_alta import AltaConfig, AltaModel, fold_adapters


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS, STUDIES = "alta_folded", "alta_folded_two_view_studies"


def build_alta() -> AltaModel:
    """Full size with random weights; adapters away from zero, so that they count."""
    torch.manual_seed(0)
    model = AltaModel(AltaConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return model


def build_clip() -> CLIPVisionModel:
    """transformers' CLIP vision tower in the size of its ViT-B/16."""
    return CLIPVisionModel(CLIPVisionConfig(patch_size=16)).eval()


def build_open_clip() -> torch.nn.Module | None:
    """open_clip's vision tower ViT-B-16, or nothing if the package is missing."""
    try:
        import open_clip
    except ImportError:
        print("open_clip is left out: pip install '.[bench]'", file=sys.stderr)
        return None
    return open_clip.create_model("ViT-B-16").visual.eval()


def encoders(dtype: torch.dtype, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Every encoder as a function without arguments that takes `batch_size` frontals, or half as many studies."""
    alta, clip, open_clip = build_alta().to(dtype), build_clip().to(dtype), build_open_clip()
    folded = fold_adapters(alta)
    frontals = torch.randn(batch_size, 3, 224, 224).to(dtype)
    studies, view_mask = two_view_studies(frontals)
    functions = {
        OURS: lambda: folded.get_image_features(frontals),
        STUDIES: lambda: folded.get_image_features(studies, view_mask),
        "alta": lambda: alta.get_image_features(frontals),
        "clip_transformers": lambda: clip(frontals).pooler_output,
    }
    if open_clip is not None:
        open_clip.to(dtype)
        functions["clip_open_clip"] = lambda: open_clip(frontals)
    return functions


def two_view_studies(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The images as current frontals and laterals of half as many studies without a prior, and their view mask."""
    studies = torch.zeros(len(images) // 2, 4, *images.shape[1:], dtype=images.dtype)
    studies[:, :2] = images.unflatten(0, (-1, 2))
    return studies, torch.tensor([True, True, False, False]).expand(len(studies), -1)


@torch.inference_mode()
def measure(dtype: torch.dtype, batch_size: int, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Rates, ratios, counts and utilisation of one dtype."""
    functions = encoders(dtype, batch_size)
    flops = {name: count_flops(functions[name]) for name in ("alta", OURS, "clip_transformers")}
    seconds, peaks = take_turns(functions, dtype, rounds, clock)
    shares = [utilisation(flops[OURS], time, peak) for time, peak in zip(seconds[OURS], peaks, strict=True)]
    return {
        "images_per_second": {name: batch_size / statistics.median(times) for name, times in seconds.items()},
        "speed_over": {
            name: median_ratio(seconds[name], seconds[OURS]) for name in functions if name not in (OURS, STUDIES)
        },
        "two_view_studies_over_half_the_frontals": median_ratio(seconds[OURS], seconds[STUDIES]),
        "gflops_per_image": {name: count / batch_size / 1e9 for name, count in flops.items()},
        "matmul_peak_gflops_per_second": statistics.median(peaks) / 1e9,
        "utilisation": statistics.median(shares),
        "largest_difference_by_folding": float((functions["alta"]() - functions[OURS]()).abs().max()),
    }


def take_turns(
    functions: dict[str, Callable], dtype: torch.dtype, rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, list], list]:
    """Seconds of every function in every round, and the matmul peak at that time; each starts a round in its turn."""
    seconds, peaks, names = {name: [] for name in functions}, [], list(functions)
    for name in names:
        functions[name]()
    for index in range(rounds):
        peaks.append(matmul_peak(dtype, clock=clock))
        for name in names[index % len(names) :] + names[: index % len(names)]:
            seconds[name].append(time_call(functions[name], clock))
    return seconds, peaks


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode", description=__doc__.splitlines()[1])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="(default: both)")
    parser.add_argument("--batch-size", type=int, default=8, help="images at once, an even number (default: 8)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every model (default: 5)")
    parser.add_argument("--processor-time", action="store_true", help="time of the processor, for one thread")
    args = parser.parse_args()
    if args.batch_size < 2 or args.batch_size % 2 or args.rounds < 1:
        parser.error("`--batch-size` must be even and at least 2, `--rounds` at least 1")
    clock = time.process_time if args.processor_time else time.perf_counter
    if args.processor_time and torch.get_num_threads() > 1:
        parser.error("`--processor-time` needs one thread: set OMP_NUM_THREADS=1")
    result = {"cpu_features": cpu_features(), "threads": torch.get_num_threads(), "clock": clock.__name__}
    result |= {"batch_size": args.batch_size, "rounds": args.rounds}
    for name in args.dtypes:
        result[name] = measure(DTYPES[name], args.batch_size, args.rounds, clock)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()


__all__ = ["measure"]
