import shutil

import pytest
from torch._dynamo.utils import counters
from trained import losses_of, train


# Blocks of the vision tower, of the report tower and of the decoder.
KINDS_OF_BLOCKS = 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_blocks_change_no_loss_and_compile_once_for_all_shapes(mrm_run, work):
    settings = {"model": {"missing_views": "skip"}, "batch_size": 6, "num_epochs": 1}
    expected = losses_of(train(work, "alta", "eager", **settings))
    counters.clear()
    for is_recomputed in (True, False):
        name = f"compiled_{is_recomputed}"
        run = train(work, "alta", name, torch_compile=True, gradient_checkpointing=is_recomputed, **settings)
        for row, other in zip(losses_of(run), expected, strict=True):
            assert row == pytest.approx(other, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == KINDS_OF_BLOCKS
    assert not counters["graph_break"]
