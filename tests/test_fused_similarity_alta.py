import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from modeling_alta import similarity_alta
from modeling_alta.blockwise_similarity_alta import blockwise_similarity
from modeling_alta.similarity_alta import local_similarity


SCALES = torch.tensor([14.0, 9.0])


def make_inputs(dtype=torch.float32, num_words=21, num_patches=40, size=16):
    """Words of three reports and patches of four studies, those that count first, and their numbers."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(3, num_words, size, generator=generator).to(dtype)
    patches = torch.randn(4, num_patches, size, generator=generator).to(dtype)
    word_counts = torch.tensor([num_words, 5, 1], dtype=torch.int32)
    patch_counts = torch.tensor([num_patches, 33, 32, 1], dtype=torch.int32)
    return words, word_counts, patches, patch_counts


def expected(words, word_counts, patches, patch_counts, gradient):
    """Similarity and gradients by the way that every device can take, in float64."""
    trained = [value.double().requires_grad_() for value in (words, patches, *SCALES)]
    word_mask = torch.arange(words.shape[1]) < word_counts[:, None].cpu()
    patch_mask = torch.arange(patches.shape[1]) < patch_counts[:, None].cpu()
    similarity = local_similarity(trained[0], word_mask, trained[1], patch_mask, *trained[2:])
    words, patches, *scales = torch.autograd.grad(similarity, trained, gradient.double())
    return similarity.detach(), words, patches, torch.stack(scales)


def relative_differences(values, others):
    return [float((a.double().cpu() - b).norm() / b.norm()) for a, b in zip(values, others, strict=True)]


CASES = {
    "alone": (torch.float32, 1024),  # every pair of a report and a study has a program of its own
    "in turn": (torch.float32, 8),  # a program goes through two studies, or three reports
    "half": (torch.float16, 8),
}


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """How far similarity and gradients of the kernels are from what they should be, by case."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    folder = tmp_path_factory.mktemp("fused")
    inputs = {name: make_inputs(dtype) for name, (dtype, _) in CASES.items()}
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    cases = [((*inputs[name], *SCALES), gradient, programs) for name, (_, programs) in CASES.items()]
    torch.save(cases, folder / "cases.pt")
    command = [sys.executable, "tests/run_fused_similarity.py", folder / "cases.pt", folder / "results.pt"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    results = zip(CASES, torch.load(folder / "results.pt"), strict=True)
    return {name: relative_differences(result, expected(*inputs[name], gradient)) for name, result in results}


@pytest.mark.parametrize("case", ["alone", "in turn"])
def test_kernels_give_the_similarity_and_gradients_of_the_definition(differences, case):
    assert max(differences[case]) < 1e-5


def test_kernels_add_no_more_error_than_half_precision_has(differences):
    similarity, words, patches, _ = differences["half"]
    assert similarity < 1e-4 and max(words, patches) < 1e-3


@pytest.mark.parametrize("name", ["_forward_kernel", "_words_kernel", "_patches_kernel"])
def test_kernels_compile_for_an_a100_within_the_memory_they_ask_for(name, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from modeling_alta import fused_similarity_alta

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(fused_similarity_alta, name)
    largest = torch.empty(1, fused_similarity_alta.MAX_WORDS, max(fused_similarity_alta.EMBEDDING_SIZES))
    sizes = fused_similarity_alta._constants(largest)
    options = {"num_warps": sizes.pop("num_warps")}
    pointers = {"words": "*bf16", "patches": "*bf16", "word_counts": "*i32", "patch_counts": "*i32"}
    numbers = dict.fromkeys(("num_reports", "num_studies", "num_words", "num_patches"), "i32")
    types = pointers | numbers | dict.fromkeys(sizes, "constexpr")
    source = triton.compiler.ASTSource(kernel, {name: types.get(name, "*fp32") for name in kernel.arg_names}, sizes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    assert 0 < compiled.metadata.shared <= fused_similarity_alta.SHARED_MEMORY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("num_words", "num_patches"), [(127, 392), (40, 98)])
def test_on_a_gpu_bfloat16_embeddings_take_the_kernels_and_stay_near_float64(num_words, num_patches):
    words, word_counts, patches, patch_counts = make_inputs(torch.bfloat16, num_words, num_patches, size=128)
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    trained = [value.cuda().requires_grad_() for value in (0.3 * words, 0.3 * patches, *SCALES)]
    word_mask = (torch.arange(num_words) < word_counts[:, None]).cuda()
    patch_mask = (torch.arange(num_patches) < patch_counts[:, None]).cuda()
    assert similarity_alta.is_fusable(*trained[:2])
    assert similarity_alta._is_trusted(trained[0].device, *trained[0].shape[1:])
    similarity = local_similarity(trained[0], word_mask, trained[1], patch_mask, *trained[2:])
    given = torch.autograd.grad(similarity, trained, gradient.cuda())
    values = similarity.detach(), *given[:2], torch.stack(given[2:])
    similarity, *gradients = relative_differences(
        values, expected(trained[0].cpu().detach(), word_counts, trained[1].cpu().detach(), patch_counts, gradient)
    )
    assert similarity < 1e-3 and max(gradients) < 1e-2


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    ("change", "memory", "expected"),
    [
        ({}, 2**17, True),
        ({"dtype": torch.float32}, 2**17, False),
        ({"device": torch.device("cpu")}, 2**17, False),
        ({"shape": (3, 129, 128)}, 2**17, False),
        ({"shape": (3, 127, 48)}, 2**17, False),
        ({}, 99 * 2**10, False),
    ],
)
def test_kernels_are_for_bfloat16_of_their_sizes_on_a_gpu_with_memory_for_them(monkeypatch, change, memory, expected):
    monkeypatch.setattr("modeling_alta.fused_similarity_alta._shared_memory", lambda device: memory)
    usual = {"dtype": torch.bfloat16, "device": torch.device("cuda"), "shape": (3, 127, 128)}
    words = SimpleNamespace(**(usual | change))
    assert similarity_alta.is_fusable(words, SimpleNamespace(**usual)) is expected


@pytest.fixture
def take_kernels(monkeypatch):
    """Stand-ins for the kernels, which `local_similarity` then takes on the CPU as well, if it trusts them."""

    def put(kernels):
        monkeypatch.setattr(similarity_alta, "is_fusable", lambda words, patches: True)
        monkeypatch.setattr(similarity_alta, "fused_similarity", kernels, raising=False)
        similarity_alta._try_kernels.cache_clear()

    yield put
    similarity_alta._try_kernels.cache_clear()


def similarity_of_ones():
    words, patches = torch.ones(2, 3, 16), torch.ones(2, 5, 16)
    masks = [torch.ones(value.shape[:2], dtype=torch.bool) for value in (words, patches)]
    return local_similarity(words, masks[0], patches, masks[1], *SCALES)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_kernels_that_give_what_they_should_are_tried_once_and_taken(take_kernels, context):
    calls = []

    def kernels(*arguments):
        calls.append(arguments)
        return blockwise_similarity(*arguments)

    take_kernels(kernels)
    with context():
        similarity_of_ones()
        similarity_of_ones()
    assert [len(words) for words, *_ in calls] == [40, 2, 2]


def exact_kernels(words, word_mask, patches, *arguments):
    return blockwise_similarity(words.double(), word_mask, patches.double(), *arguments).float()


@pytest.mark.parametrize("num_words", [8, 32])
def test_kernels_are_tried_against_what_is_right_where_training_runs_under_autocast(take_kernels, num_words):
    take_kernels(exact_kernels)
    with torch.autocast("cpu", torch.bfloat16):
        assert similarity_alta._kernel_difference(torch.device("cpu"), num_words, 128) < 0.005


def kernels_with_a_wrong_gradient(words, *arguments):
    return blockwise_similarity(words + 0.1 * (words - words.detach()), *arguments)


def kernels_that_give_no_numbers(words, word_mask, patches, *arguments):
    return blockwise_similarity(words, word_mask, patches + torch.nan * (patches - patches.detach()), *arguments)


def kernels_that_do_not_run(*arguments):
    raise RuntimeError("Failed to find C compiler.")


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (kernels_with_a_wrong_gradient, "are off by 0.1"),
        (kernels_that_give_no_numbers, "are off by nan"),
        (kernels_that_do_not_run, "fail: Failed to find C compiler."),
    ],
)
def test_kernels_that_cannot_be_trusted_are_left_out_with_one_warning(take_kernels, kernels, message):
    expected = similarity_of_ones()
    take_kernels(kernels)
    with pytest.warns(UserWarning, match=message) as warned:
        assert torch.equal(similarity_of_ones(), expected)
        assert torch.equal(similarity_of_ones(), expected)
    assert len(warned) == 1


def test_without_triton_the_similarity_takes_the_way_of_every_device(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "modeling_alta.fused_similarity_alta", raising=False)
    spec = importlib.util.spec_from_file_location("modeling_alta.similarity_again", similarity_alta.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words, _, patches, _ = make_inputs(torch.bfloat16)
    assert not hasattr(module, "fused_similarity") and not module.is_fusable(words, patches)
