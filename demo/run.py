"""Run the whole path on `samples/`: `make demo`, or `python -m demo.run`.

Every step is a command that a user could type; its outputs lie in `demo/output/`, and `demo/report.html` shows them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


WORK = Path("demo/output")
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
)
PYTHON = (sys.executable, "-m")


def steps(quick: bool) -> list[tuple[str, tuple[str, ...]]]:
    """What is done, in words and as a command. `quick` trains for a few steps only, to try the path."""
    epochs = ("num_epochs=2", "schedule_epochs=2", "warmup_epochs=1") if quick else ()
    records, text_encoder, full = f"{WORK}/records", f"{WORK}/text_encoder", f"{WORK}/alta/full"
    evaluation = [
        (
            f"{title} on the studies of the {split} split",
            (*PYTHON, module, "--model", full, "--records", records, "--split", split, *more)
            + ("--output", f"{WORK}/eval/{module.removeprefix('eval.')}_{split}.json"),
        )
        for title, module, more in (
            ("Retrieval", "eval.retrieval", ()),
            ("Zero-shot classification", "eval.zero_shot", ("--prompts", "eval/prompts/covid_cxr.json")),
        )
        for split in ("train", "test")
    ]
    return [
        (
            "Image-level metadata to study records",
            (*PYTHON, "processing.covid_cxr", "--root", "samples", "--output", records),
        ),
        (
            "A small text encoder from the notes",
            (*PYTHON, "processing.text_encoder", "--records", records, "--output", text_encoder)
            + ("--epochs", "2" if quick else "220", "--batch-size", "25", "--learning-rate", "3e-3")
            + ("--vocab-size", "800", "--projection-size", "32"),
        ),
        ("Masked record modelling", (*LAUNCH, "train_accelerate.py", "--config", "recipes/demo_mrm.yaml", *epochs)),
        (
            "Alignment through adapters",
            (*LAUNCH, "train_accelerate.py", "--config", "recipes/demo_alta.yaml", *epochs),
        ),
        *evaluation,
        ("Model card from the run's figures", (*PYTHON, "demo.card")),
        ("The exported folder in a new process", (*PYTHON, "demo.load")),
        ("Report", (*PYTHON, "demo.report")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train for a few steps only, to try the path")
    args = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    # Models this small are faster on one thread than on threads that wait for each other.
    environment.setdefault("OMP_NUM_THREADS", "1")
    start = time.monotonic()
    todo = steps(args.quick)
    for number, (title, command) in enumerate(todo, 1):
        print(f"\n[{number}/{len(todo)}] {title}\n    {shown(command)}", flush=True)
        step_start = time.monotonic()
        result = subprocess.run(command, env=environment)
        if result.returncode:
            sys.exit(f"`{title}` failed with exit status {result.returncode}; its message stands above.")
        print(f"    {time.monotonic() - step_start:.0f} s", flush=True)
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open demo/report.html.")


def shown(command: tuple[str, ...]) -> str:
    """The command as a user would type it."""
    words = ["accelerate", "launch", *command[len(LAUNCH) :]] if command[: len(LAUNCH)] == LAUNCH else list(command)
    return " ".join("python" if word == sys.executable else word for word in words)


if __name__ == "__main__":
    main()
