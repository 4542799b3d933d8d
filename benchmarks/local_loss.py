"""
What does the local contrastive loss cost, forward and backward, against a plain loop over the reports?

`python -m benchmarks.local_loss` prints JSON: the seconds of both, which take turns in one process (median of
`--rounds`), and their ratio; how far values and gradients are apart; and the peak memory of both without what was
there before, on a CPU each in a child process of its own. Default sizes: 96 studies, 127 words, 196 patches, float32;
with `--mean-words` the reports are evenly shorter and longer than that, the longest of `--num-words`. `--dtype tf32`
lets a GPU multiply float32 as TF32, and `bf16` gives bfloat16 embeddings under autocast, as training does; how far
loss and gradients are from those of the loop in float32 is told for ours.
On a machine that others use as well, `OMP_NUM_THREADS=1 … --processor-time` takes the time of the processor in place
of the clock's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.flops import time_call
from benchmarks.memory import PeakMemory, measure_tree
from benchmarks.plain_form import plain_local_loss
from modeling_alta.losses_alta import local_contrastive_loss


SIZES = ("num_studies", "num_words", "num_patches", "embedding_size")


def make_inputs(args: argparse.Namespace) -> list[torch.Tensor]:
    """Words, patches and the three scales, whose gradients are asked for."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(args.num_studies, number, args.embedding_size) for number in (args.num_words, args.num_patches)]
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    embeds = [0.3 * torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [value.to(args.device).requires_grad_() for value in (*embeds, *torch.full((3,), 14.0))]


def make_word_mask(args: argparse.Namespace) -> torch.Tensor:
    """Which words stand, in reports of evenly spread lengths in no order."""
    shortest = 2 * (args.mean_words or args.num_words) - args.num_words
    lengths = torch.linspace(shortest, args.num_words, args.num_studies).round().long()
    lengths = lengths[torch.randperm(args.num_studies, generator=torch.Generator().manual_seed(0))]
    return (torch.arange(args.num_words) < lengths[:, None]).to(args.device)


def run_form(form: str, word_mask, words, patches, *scales) -> list[torch.Tensor]:
    """Loss and gradients of a form."""
    patch_mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=words.device)
    with torch.autocast(words.device.type, torch.bfloat16, enabled=words.dtype == torch.bfloat16):
        if form == "plain":
            loss = plain_local_loss(words, word_mask, patches, *scales)
        else:
            loss = local_contrastive_loss(words, word_mask, patches, patch_mask, *scales)
    return [loss.detach(), *torch.autograd.grad(loss, (words, patches, *scales))]


def differences(word_mask: torch.Tensor, inputs: list[torch.Tensor]) -> dict[str, float]:
    """How far our loss and gradients are from the plain form's in float32, relative to the norm of those."""
    names = ("loss", "words", "patches", "attention_scale", "pooling_scale", "contrast_scale")
    ours = run_form("ours", word_mask, *inputs)
    torch.set_float32_matmul_precision("highest")
    plain = run_form("plain", word_mask, *(value.detach().float().requires_grad_() for value in inputs))
    return {name: float((a - b).norm() / a.norm()) for name, a, b in zip(names, plain, ours, strict=True)}


def peak_of(form: str, args: argparse.Namespace) -> int:
    """Peak bytes of one run beyond its inputs."""
    inputs = [make_word_mask(args), *make_inputs(args)]
    if args.device != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        run_form(form, *inputs)
        return torch.accelerator.max_memory_allocated() - before
    before = measure_tree(os.getpid(), "Pss_Anon")
    with PeakMemory(interval=0.02, anonymous=True) as memory:
        run_form(form, *inputs)
    return memory.peak - before


def measure_peak(form: str, args: argparse.Namespace) -> int:
    if args.device != "cpu":
        return peak_of(form, args)
    given = {name: getattr(args, name) for name in (*SIZES, "mean_words") if getattr(args, name) is not None}
    sizes = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.local_loss", "--peak-of", form, "--dtype", args.dtype]
    return json.loads(subprocess.run([*command, *sizes], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Local loss against a loop over the reports; prints JSON.")
    for name, default in zip(SIZES, (96, 127, 196, 128), strict=True):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--mean-words", type=int, help="at least half of `--num-words` (default: all of them)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one to warm up")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--dtype", choices=("fp32", "tf32", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument("--processor-time", action="store_true", help="time of the processor, for one thread")
    parser.add_argument("--peak-of", choices=("plain", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.processor_time and torch.get_num_threads() > 1:
        parser.error("`--processor-time` needs one thread: set OMP_NUM_THREADS=1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("`--device cuda` needs a GPU, and torch finds none here")
    if args.dtype == "tf32" and args.device == "cpu":
        parser.error("`--dtype tf32` is for GPUs: set `--device cuda`")
    torch.set_float32_matmul_precision("high" if args.dtype == "tf32" else "highest")
    if args.peak_of:
        print(peak_of(args.peak_of, args))
        return
    if args.mean_words is not None and not args.num_words <= 2 * args.mean_words <= 2 * args.num_words:
        half, most = (args.num_words + 1) // 2, args.num_words
        parser.error(f"`--mean-words` must be between {half} and {most}, got {args.mean_words}.")
    peaks = {form: measure_peak(form, args) for form in ("plain", "ours")}
    word_mask, inputs = make_word_mask(args), make_inputs(args)
    clock = time.process_time if args.processor_time else time.perf_counter
    times = [
        [
            time_call(lambda form=form: run_form(form, word_mask, *inputs)[0].item(), clock)
            for form in ("plain", "ours")
        ]
        for _ in range(1 + args.rounds)
    ][1:]
    result = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "plain_seconds": statistics.median(plain for plain, _ in times),
        "ours_seconds": statistics.median(ours for _, ours in times),
        "ratio": statistics.median(plain / ours for plain, ours in times),
        "plain_peak_bytes": peaks["plain"],
        "ours_peak_bytes": peaks["ours"],
        "peak_ratio": peaks["plain"] / peaks["ours"],
        "relative_difference": differences(word_mask, inputs),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()


__all__ = ["make_inputs", "run_form"]
