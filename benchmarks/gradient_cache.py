"""
Does the memory of a step grow with the number of studies that are contrasted, when they are taken in parts?

`python -m benchmarks.gradient_cache` prints JSON: the peak memory of one full-size training step, imports left out,
for each number of studies, in parts of `--micro-batch-size` and, with `--whole`, in one piece. Every figure is from a
process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.train_step import build_model, make_batch
from modeling_alta import AltaConfig
from training.gradient_cache import backward_in_parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, nargs="+", default=[16, 64], help="studies contrasted (default: 16 64)")
    parser.add_argument("--micro-batch-size", type=int, default=8, help="studies of a part (default: 8)")
    parser.add_argument("--whole", action="store_true", help="also in one piece")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if any(number < 1 or number % args.micro_batch_size for number in args.studies):
        parser.error(
            f"`--studies` must be multiples of `--micro-batch-size` {args.micro_batch_size}, got {args.studies}"
        )
    if args.one:
        print(json.dumps(measure(args.one, args.micro_batch_size)))
        return
    rows = [run_alone(studies, args.micro_batch_size) for studies in args.studies]
    rows += [run_alone(studies, studies) for studies in args.studies if args.whole]
    cached = [row["peak_gib"] for row in rows if row["parts"] > 1]
    growth = max(cached) / min(cached) if cached else None
    print(json.dumps({"threads": torch.get_num_threads(), "rows": rows, "growth_in_parts": growth}, indent=2))


def run_alone(num_studies: int, micro_batch_size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gradient_cache", "--one", str(num_studies)]
    result = subprocess.run(
        [*command, "--micro-batch-size", str(micro_batch_size)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(result.stdout)


def measure(num_studies: int, micro_batch_size: int) -> dict[str, Any]:
    """Peak memory in GiB of one step of this process, above what it holds after the imports."""
    accelerator = Accelerator(cpu=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    parts = [make_part(model.config, micro_batch_size) for _ in range(num_studies // micro_batch_size)]
    if len(parts) > 1:
        backward_in_parts(accelerator, model, model.config, parts, torch.manual_seed, lambda is_last: nullcontext())
    else:
        model(**parts[0]).loss.backward()
    optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"studies": num_studies, "parts": len(parts), "peak_gib": peak / 2**20}


def make_part(config: AltaConfig, num_studies: int) -> dict[str, torch.Tensor]:
    """A part of a batch as the trainer's collator gives it: one channel of every image."""
    part = make_batch(config, num_studies, mean_length=90, views="half")
    return part | {name: part[name][..., :1, :, :].clone() for name in ("pixel_values", "target_pixel_values")}


if __name__ == "__main__":
    main()
