import importlib.util
import json
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from trained import arguments_of, finish, losses_of, settings_of, start_python, train, write_recipe

from training import build
from training.build import build_accelerator, compile_blocks
from training.watching import VALIDATION_LOG, read_log


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (extra `deepspeed`)"
)
SHARDED = ["fsdp2", pytest.param("deepspeed_zero2", marks=needs_deepspeed)]
TYPES = {"fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
WATCHED = {"validate_every": 3, "checkpoint_every": 2, "keep_checkpoints": 9}


def launch(engine: str, recipe: Path, *overrides: str) -> str:
    """Train in two processes under the config file of an engine; what they printed."""
    script = "train_accelerate.py" if engine == "ddp" else "tests/run_sharded_on_cpu.py"
    processes = ["--num_processes", "2", "--main_process_port", "0"]
    command = ["-m", "accelerate.commands.launch", "--config_file", f"engines/{engine}.yaml", *processes, script]
    return finish(start_python([*command, "--config", recipe, *overrides], DS_ACCELERATOR="cpu"))


@pytest.fixture(scope="module")
def start(mrm_run, work, tmp_path_factory) -> dict[str, str]:
    """What starts a stage whose dropout is off: the processes of a run draw it apart."""
    text = tmp_path_factory.mktemp("engines") / "text"
    shutil.copytree(work / "text", text)
    config = json.loads((text / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (text / "config.json").write_text(json.dumps(config))
    return {"mrm": f"{work}/mrm/model", "records": f"{work}/records", "text_encoder": str(text)}


@pytest.fixture(scope="module")
def expected(start, work) -> Path:
    """The run of one process that every engine must repeat."""
    return train(work, "alta", "one_process", **start, **WATCHED)


def settings_of_two(work: Path, name: str, **settings) -> dict:
    return settings_of(work, "alta", name, **settings) | {"batch_size": 4}


def assert_same_run(run: Path, expected: Path):
    """Losses, validation and what a run leaves are equal."""
    for row, other in zip(losses_of(run), losses_of(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for row, other in zip(read_log(run / VALIDATION_LOG), read_log(expected / VALIDATION_LOG), strict=True):
        assert row == pytest.approx(other)
    for name in ("adapter/adapter_model", "full/model", "best/full/model"):
        weights, others = (load_file(folder / f"{name}.safetensors") for folder in (run, expected))
        torch.testing.assert_close(weights, others, rtol=1e-3, atol=1e-5)


def engine_of(run: Path) -> tuple[str, int]:
    start = json.loads((run / "run.json").read_text())
    return start["engine"], start["processes"]


def test_ddp_trains_as_one_process(expected, start, work, tmp_path):
    launch("ddp", write_recipe(tmp_path / "recipe.yaml", settings_of_two(work, "ddp", **start, **WATCHED)))
    assert engine_of(work / "ddp") == ("MULTI_CPU", 2)
    assert_same_run(work / "ddp", expected)
    metrics = json.loads((work / "ddp" / "metrics.json").read_text())
    assert (metrics["run"]["processes"], metrics["run"]["steps"]) == (2, 6)
    assert metrics["validation"]["metric"] == "text_to_image_recall_at_5"


def test_processes_that_take_their_place_from_variables_train_as_one_process(expected, start, work, tmp_path):
    settings = settings_of_two(work, "variables", gradient_checkpointing=True, **start, **WATCHED)
    command = ["train_accelerate.py", "--config", write_recipe(tmp_path / "recipe.yaml", settings)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": "2"}
    for process in [start_python(command, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]:
        finish(process)
    assert engine_of(work / "variables") == ("MULTI_CPU", 2)
    assert_same_run(work / "variables", expected)


@pytest.mark.parametrize("engine", SHARDED)
def test_a_sharded_run_with_gradient_caching_trains_as_one_process_and_resumes_exactly(
    engine, expected, start, work, tmp_path
):
    settings = settings_of_two(work, engine, micro_batch_size=2, **start, **WATCHED)
    recipe = write_recipe(tmp_path / "recipe.yaml", settings)
    launch(engine, recipe)
    assert engine_of(work / engine) == (TYPES[engine], 2)
    assert_same_run(work / engine, expected)
    losses = losses_of(work / engine)
    checkpoint = work / engine / "checkpoints" / "step_00000004"
    assert "Resumed from" in launch(engine, recipe, f"resume={checkpoint}")
    assert losses_of(work / engine) == losses


@pytest.mark.parametrize("engine", SHARDED)
def test_a_sharded_run_in_bfloat16_keeps_losses_and_weights_in_float32(engine, expected, start, work, tmp_path):
    name, half = f"{engine}_half", start | {"mixed_precision": "bf16", "num_epochs": 1}
    launch(engine, write_recipe(tmp_path / "recipe.yaml", settings_of_two(work, name, **half)))
    row, whole = losses_of(work / name)[0], losses_of(train(work, "alta", f"{name}_whole", **half))[0]
    # The first step: rounding sets runs of one and of two processes apart after that.
    assert row["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert row["loss"] != pytest.approx(losses_of(expected)[0]["loss"], rel=1e-5)
    weights = load_file(work / name / "adapter" / "adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values())


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_an_engine_that_needs_a_gpu_is_an_error_without_one(variable, work, monkeypatch):
    if variable == "ACCELERATE_USE_DEEPSPEED" and not importlib.util.find_spec("deepspeed"):
        pytest.skip("deepspeed is not installed")
    monkeypatch.setenv(variable, "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="`--config_file` must name an engine for this machine, got one for .* cpu"):
        build_accelerator(arguments_of(work, "alta"))


def test_compiled_blocks_change_no_loss_and_are_compiled_once_for_all_shapes(start, work, monkeypatch):
    # All that comes before the generation of code, which takes minutes: that is tried on one block below.
    monkeypatch.setattr(build, "compile_blocks", partial(compile_blocks, backend="aot_eager_decomp_partition"))
    settings = start | {"model": {"missing_views": "skip"}, "batch_size": 6, "num_epochs": 1}
    eager = losses_of(train(work, "alta", "eager", **settings))
    counters.clear()
    compiled = losses_of(train(work, "alta", "compiled", torch_compile=True, **settings))
    for row, other in zip(compiled, eager, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    # One graph for every kind of call, which are those of the first step: none for another number of views or tokens.
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_the_code_of_a_compiled_block_gives_its_output_and_gradients(tiny_pretraining_model):
    block = tiny_pretraining_model.vision_model.blocks[0]
    torch.manual_seed(0)
    inputs = [torch.randn(number, 5 + number, 32, requires_grad=True) for number in (2, 3)]

    def results() -> list[torch.Tensor]:
        outputs = [block(hidden_states) for hidden_states in inputs]
        trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
        return outputs + list(torch.autograd.grad(sum(output.square().sum() for output in outputs), inputs + trained))

    eager = results()
    counters.clear()
    compile_blocks(block)
    torch.testing.assert_close(results(), eager)
    assert counters["stats"]["unique_graphs"] == 1
