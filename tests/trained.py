"""Runs of the trainer that several test files share: records of the samples, a text encoder, one run of each stage."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from PIL import Image, ImageOps
from prepared_processes import PreparedProcess

import train_accelerate
from processing.covid_cxr import prepare_covid_cxr
from processing.text_encoder import main as make_text_encoder
from processing.text_encoder import parse_args
from recipes.recipe import TrainArguments, build_arguments
from training.watching import TRAINING_LOG, read_log


ROOT = Path(__file__).parent.parent
TINY_TOWERS = {
    "vision_config": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_patch_size": 16,
}
TINY_REPORT_DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SAMPLE_SIDE = 120  # pixels; more than the models' target of 64 and what cropping takes
QUICK = {
    "batch_size": 8,
    "num_epochs": 2,
    "schedule_epochs": 2,
    "warmup_epochs": 1,
    "base_learning_rate": 0.03,
    "log_every": 1,
    "log_with": None,
    "max_gradient_norm": 1.0,
}


def settings_of(work: Path, stage: str, name: str | None = None, **settings) -> dict:
    """A quick recipe of a stage, whose folder is `work / name`."""
    start = {"text_encoder": f"{work}/text"}
    if stage == "mrm":
        start["model"] = TINY_TOWERS | {"text_config": TINY_REPORT_DECODER}
    elif "base" in settings:
        start = {}
    else:
        start["mrm"] = f"{work}/mrm/model"
    places = {"stage": stage, "records": f"{work}/records", "output_dir": f"{work}/{name or stage}"}
    return places | start | QUICK | settings


def arguments_of(work: Path, stage: str, name: str | None = None, **settings) -> TrainArguments:
    return build_arguments(settings_of(work, stage, name, **settings))


def train(work: Path, stage: str, name: str | None = None, **settings) -> Path:
    """Train in this process; the run's folder."""
    return train_by(arguments_of(work, stage, name, **settings))


def train_by(args: TrainArguments) -> Path:
    """Train in this process by a recipe that has been read; the run's folder."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        train_accelerate.main(args)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Path(args.output_dir)


def start_training(
    recipe: Path | str, *more: str, num_processes: int = 1, script: str = "train_accelerate.py"
) -> PreparedProcess:
    """Train in processes of their own: by a recipe and overrides, or by what else `script` takes."""
    arguments = ["--config", str(recipe)] if script == "train_accelerate.py" else [str(recipe)]
    return start_python([*torchrun(num_processes), script, *arguments, *more])


def torchrun(num_processes: int) -> list[str]:
    """What stands between `python` and a script that runs in several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    return launcher if num_processes > 1 else []


def start_python(command: Sequence[str | Path], **environment: str) -> PreparedProcess:
    """`python` with a command, in the root of the repository."""
    return PreparedProcess(command, ROOT, os.environ | {"OMP_NUM_THREADS": "1"} | environment)


def wait_for_step(process: PreparedProcess, run: Path, step: int) -> None:
    """Wait until the log of a run in other processes has come to a step."""
    deadline = time.monotonic() + 240
    while not any(row["step"] >= step for row in read_log(run / TRAINING_LOG)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{run} did not come to step {step}."
        time.sleep(0.02)


def write_recipe(path: Path, settings: dict) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def finish(process: PreparedProcess) -> str:
    """The output of processes that must succeed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses_of(run: Path) -> list[dict[str, float]]:
    """What the lines of a log say of the training itself, without times and memory."""
    kept = ("step", "epoch", "learning_rate", "gradient_norm", "adapter_norm")
    rows = read_log(run / TRAINING_LOG)
    return [{key: row[key] for key in row if key in kept or key.endswith(("loss", "scale"))} for row in rows]


def shrink_samples(folder: Path) -> Path:
    """The samples with images as small as the tests' models, of which decoding takes little of a run's time."""
    shutil.copytree(ROOT / "samples", folder)
    for path in folder.glob("images/*"):
        with Image.open(path) as image:
            smaller = ImageOps.contain(image, (SAMPLE_SIDE, SAMPLE_SIDE))
        smaller.save(path)
    return folder


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """Records of the samples and a text encoder."""
    work = tmp_path_factory.mktemp("work")
    prepare_covid_cxr(shrink_samples(work / "samples"), work / "records")
    sizes = ["--hidden-size", "32", "--num-attention-heads", "2", "--epochs", "1", "--vocab-size", "300"]
    make_text_encoder(parse_args(["--records", f"{work}/records", "--output", f"{work}/text", *sizes]))
    return work


@pytest.fixture(scope="session")
def mrm_run(work) -> Path:
    return train(work, "mrm")


@pytest.fixture(scope="session")
def alta_run(work, mrm_run) -> Path:
    return train(work, "alta")
