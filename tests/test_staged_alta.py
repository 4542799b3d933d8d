from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.checkpoint import checkpoint

from modeling_alta import modeling_alta
from modeling_alta.staged_alta import staged_loss


def make_layer() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    return layer, torch.randn(2, 3, requires_grad=True)


def test_gradients_are_those_of_the_plain_call_and_scale_with_the_loss():
    layer, x = make_layer()
    results = []
    for loss in (layer(x).square().sum(), staged_loss(lambda x: layer(x).square().sum(), (x,), [layer, layer])):
        results.append((loss.detach(), torch.autograd.grad(3 * loss, (x, layer.weight))))
    torch.testing.assert_close(*results)


def test_no_graph_but_that_to_inputs_and_parameters_is_left():
    layer, x = make_layer()
    loss = staged_loss(lambda x: layer(x).exp().sum(), (x,), [layer])
    functions = [function for function, _ in loss.grad_fn.next_functions if function is not None]
    assert {type(function).__name__ for function in functions} == {"AccumulateGrad"} and len(functions) == 2


def test_hooks_of_parameters_run_in_the_backward_pass_alone():
    layer, x = make_layer()
    calls = []
    layer.weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.clone()))
    loss = staged_loss(lambda x: layer(x).sum(), (x,), [layer])
    assert calls == []
    loss.backward()
    assert len(calls) == 1


def test_unused_parameters_and_inputs_without_gradient_get_none():
    layer, x = make_layer()
    other = nn.Linear(2, 2)
    staged_loss(lambda x: layer(x).sum(), (x.detach(),), [layer, other]).backward()
    assert layer.weight.grad is not None and other.weight.grad is None


def test_stages_may_checkpoint_inside():
    layer, x = make_layer()
    loss = staged_loss(lambda x: checkpoint(layer, x, use_reentrant=False).exp().sum(), (x,), [layer])
    expected = torch.autograd.grad(layer(x).exp().sum(), (x, layer.weight))
    torch.testing.assert_close(torch.autograd.grad(loss, (x, layer.weight)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float16_is_left_to_the_scaler(dtype):
    layer, x = make_layer()
    with torch.autocast("cpu", dtype=dtype):
        loss = staged_loss(lambda x: layer(x).float().sum(), (x,), [layer])
    assert (type(loss.grad_fn).__name__ == "_StagedLossBackward") == (dtype == torch.bfloat16)


@pytest.mark.parametrize("mark", ["device_mesh", "ds_id"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_sharded_parameters_even_frozen_are_left_to_fsdp_and_deepspeed(mark, name):
    layer, x = make_layer()
    setattr(getattr(layer, name), mark, 0)
    assert type(staged_loss(lambda x: layer(x).sum(), (x,), [layer]).grad_fn).__name__ == "SumBackward0"


def test_modules_that_fsdp_has_made_whole_for_now_are_left_to_it():
    layer, x = make_layer()
    layer.unshard = None
    assert type(staged_loss(lambda x: layer(x).sum(), (x,), [layer]).grad_fn).__name__ == "SumBackward0"


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TwoLayers(nn.Module):
    """A layer, and a head whose loss `as_loss` works out."""

    def __init__(self, as_loss, wrap_head):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.as_loss = nn.Linear(3, 3), wrap_head(nn.Linear(3, 3)), as_loss

    def forward(self, x):
        return self.as_loss(lambda x: self.head(x).square().sum(), (self.body(x),), [self.head])


@pytest.mark.parametrize(
    ("is_nested", "use_orig_params"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_gradients_reach_every_unit_of_the_first_fsdp(process_group, is_nested, use_orig_params):
    settings = {"use_orig_params": use_orig_params, "device_id": torch.device("cpu")}
    gradients = []
    for as_loss in (staged_loss, lambda function, inputs, modules: function(*inputs)):
        wrap_head = partial(FullyShardedDataParallel, **settings) if is_nested else nn.Identity().forward
        model = FullyShardedDataParallel(TwoLayers(as_loss, wrap_head), **settings)
        model(torch.ones(2, 3)).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_without_gradients_it_is_a_plain_call():
    layer, x = make_layer()
    with torch.no_grad():
        assert not staged_loss(lambda x: layer(x).sum(), (x,), [layer]).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_in_stages_gives_the_gradients_of_one_graph(tiny_pretraining_model, tiny_batch, monkeypatch, dtype):
    model, gradients = tiny_pretraining_model, []
    for is_staged in (True, False):
        if not is_staged:
            monkeypatch.setattr(modeling_alta, "staged_loss", lambda function, inputs, modules: function(*inputs))
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(**tiny_batch).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).norm() <= tolerance * gradient.norm() + 1e-7, name


def test_a_loss_that_nothing_trains_is_a_plain_call():
    layer = torch.nn.Linear(2, 1).requires_grad_(False)
    loss = staged_loss(lambda inputs: layer(inputs).sum(), (torch.ones(3, 2),), [layer])
    assert not loss.requires_grad
    torch.testing.assert_close(loss, layer(torch.ones(3, 2)).sum())
