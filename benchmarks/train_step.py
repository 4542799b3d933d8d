"""
How much faster and leaner is a full-size train step than the plain form of the same model?

`python -m benchmarks.train_step` prints JSON: for each dtype and mean report length the seconds of both forms, which
take turns in one process (median of `--rounds`), their ratio, the share of the matmul peak that ours reaches, the
peak memory of both, and how far their losses are apart with all views present. A step is forward, backward and AdamW,
with dropout, on 8 studies of which half of the view slots are there; with `bf16` under autocast, where ours also keeps
the frozen weights in bfloat16.

Peaks are of a child process for each form, that runs two steps of it alone; what was there after the imports is left
out, the weights are not.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.flops import count_flops, matmul_peak, time_call, utilisation
from benchmarks.memory import PeakMemory, measure_tree
from benchmarks.plain_form import plain_losses
from modeling_alta import AltaConfig, AltaForPreTraining
from modeling_alta.adapters_alta import cast_frozen_matrices


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPREAD = 38  # tokens by which the shortest and the longest report differ from the mean
LOSSES = ("global_contrastive_loss", "local_contrastive_loss", "image_reconstruction_loss", "masked_report_loss")


def build_model() -> AltaForPreTraining:
    """Full size, present views only, frozen as published; adapters away from zero, so that they count."""
    torch.manual_seed(0)
    model = AltaForPreTraining(AltaConfig(missing_views="skip"))
    model.freeze_pretrained()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    return model.train()


VIEWS = {
    "half": [[0, 2], [1, 3], [0, 3], [1, 2]],  # every slot in half of the studies
    "frontals": [[0, 1], [0, 2], [0, 3]],  # half of the slots, the current frontal in every study
    "all": [[0, 1, 2, 3]],
}


def make_batch(config: AltaConfig, num_studies: int, mean_length: int, views: str) -> dict[str, torch.Tensor]:
    """Made studies whose views follow a pattern of `VIEWS` in turn; reports evenly around a mean length."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(mean_length - SPREAD, mean_length + SPREAD, num_studies).round().long()
    lengths = lengths[torch.randperm(num_studies, generator=generator)]
    attention_mask = (torch.arange(config.max_report_length) < lengths[:, None]).long()
    vision, shape = config.vision_config, attention_mask.shape
    input_ids = torch.randint(5, config.text_config.vocab_size, shape, generator=generator) * attention_mask
    inner = attention_mask.bool() & (torch.arange(shape[1]) > 0)
    is_masked = inner & (torch.rand(shape, generator=generator) < config.report_mask_ratio)
    view_mask = torch.zeros(num_studies, 4, dtype=torch.bool)
    for study, present in zip(range(num_studies), itertools.cycle(VIEWS[views]), strict=False):
        view_mask[study, present] = True
    sides = (vision.image_size, config.target_image_size)
    pixels, target = (
        torch.randn(num_studies, n, 3, side, side, generator=generator) for n, side in zip((4, 1), sides, strict=True)
    )
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "masked_input_ids": input_ids.masked_fill(is_masked, 4),
        "labels": input_ids.masked_fill(~is_masked, -100),
        "pixel_values": pixels,
        "view_mask": view_mask,
        "target_pixel_values": target[:, 0],
        "noise": torch.rand(num_studies, 4, vision.num_patches, generator=generator),
    }


def our_losses(model: AltaForPreTraining, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return model(**batch)


FORMS = {"plain": plain_losses, "ours": our_losses}


def build_step(form: str, model: AltaForPreTraining, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> Callable:
    """One train step of a form as a function without arguments."""
    if form == "ours" and dtype == torch.bfloat16:
        cast_frozen_matrices(model, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    device = batch["input_ids"].device.type

    def step():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = FORMS[form](model, batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_forms(args: argparse.Namespace, dtype: torch.dtype, mean_length: int) -> dict[str, float | list[float]]:
    """Median seconds of both forms, in turn, and the medians over the rounds of their ratio and of our utilisation."""
    models = {form: build_model() for form in FORMS}
    batch = make_batch(models["ours"].config, args.num_studies, mean_length, args.views)
    plain, ours = (build_step(form, models[form], batch, dtype) for form in FORMS)
    plain()  # the first steps warm up
    flops = count_flops(ours)
    clock = time.process_time if args.processor_time else time.perf_counter
    rounds = [
        (time_call(plain, clock), time_call(ours, clock), matmul_peak(dtype, clock=clock)) for _ in range(args.rounds)
    ]
    return {
        "plain_seconds": statistics.median(plain for plain, _, _ in rounds),
        "ours_seconds": statistics.median(ours for _, ours, _ in rounds),
        "ratio": statistics.median(plain / ours for plain, ours, _ in rounds),
        "ratios": [plain / ours for plain, ours, _ in rounds],
        "ours_flops": flops,
        "ours_utilisation": statistics.median(utilisation(flops, ours, peak) for _, ours, peak in rounds),
    }


def measure_peak(form: str, args: argparse.Namespace, dtype_name: str, mean_length: int) -> int:
    """Peak bytes of two steps of a form in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--peak-of", form, "--dtypes", dtype_name]
    sizes = ["--mean-lengths", str(mean_length), "--num-studies", str(args.num_studies), "--views", args.views]
    return json.loads(subprocess.run([*command, *sizes], check=True, capture_output=True, text=True).stdout)


def peak_of(form: str, args: argparse.Namespace) -> int:
    before = measure_tree(os.getpid(), "Pss_Anon")
    with PeakMemory(interval=0.05, anonymous=True) as memory:
        model = build_model()
        batch = make_batch(model.config, args.num_studies, args.mean_lengths[0], args.views)
        step = build_step(form, model, batch, DTYPES[args.dtypes[0]])
        for _ in range(2):
            step()
    return memory.peak - before


def loss_difference(args: argparse.Namespace, mean_length: int) -> dict[str, dict[str, float]]:
    """Losses of both forms in float32, without dropout and with all views present, and how far they are apart."""
    model = build_model().eval()
    batch = make_batch(model.config, args.num_studies, mean_length, "all")
    with torch.no_grad():
        losses = {form: {name: float(run(model, batch)[name]) for name in LOSSES} for form, run in FORMS.items()}
    apart = {name: abs(losses["plain"][name] - losses["ours"][name]) for name in LOSSES}
    return {**losses, "difference": apart}


def compare(args: argparse.Namespace, dtype_name: str, mean_length: int) -> dict[str, object]:
    result = {"dtype": dtype_name, "mean_report_length": mean_length}
    if args.rounds:
        result |= time_forms(args, DTYPES[dtype_name], mean_length)
    if args.memory:
        peaks = {f"{form}_peak_bytes": measure_peak(form, args, dtype_name, mean_length) for form in FORMS}
        result |= {**peaks, "peak_ratio": peaks["ours_peak_bytes"] / peaks["plain_peak_bytes"]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Full-size train step against the plain form; prints JSON.")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: both")
    parser.add_argument("--mean-lengths", nargs="+", type=int, default=[90, 54], help="tokens (default: 90 54)")
    parser.add_argument("--num-studies", type=int, default=8, help="default: 8")
    parser.add_argument("--views", choices=VIEWS, default="half", help="which slots are there (default: half)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one to warm up; 0 for none")
    parser.add_argument("--memory", action="store_true", help="also measure the peaks")
    parser.add_argument("--losses", action="store_true", help="also compare the losses")
    parser.add_argument("--processor-time", action="store_true", help="time of the processor, for one thread")
    parser.add_argument("--peak-of", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.processor_time and torch.get_num_threads() > 1:
        parser.error("`--processor-time` needs one thread: set OMP_NUM_THREADS=1")
    if args.peak_of:
        print(peak_of(args.peak_of, args))
        return
    result = {"threads": torch.get_num_threads(), "num_studies": args.num_studies, "views": args.views}
    result["steps"] = [compare(args, dtype, length) for dtype in args.dtypes for length in args.mean_lengths]
    if args.losses:
        result["losses"] = loss_difference(args, args.mean_lengths[0])
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
