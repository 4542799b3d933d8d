"""The kernels of the fused similarity in triton's interpreter, on tensors that a test saved: for a process of its own,
since triton reads `TRITON_INTERPRET` when it is imported.

Arguments: a file of cases, each the inputs, the gradient at the similarity and how many programs there may be; and the
file of what the kernels give for them.
"""

import sys

import torch

from modeling_alta import fused_similarity_alta
from modeling_alta.fused_similarity_alta import similarity_backward, similarity_forward


def run(inputs: tuple[torch.Tensor, ...], gradient: torch.Tensor, programs: int) -> tuple[torch.Tensor, ...]:
    fused_similarity_alta.PROGRAMS = programs
    return similarity_forward(*inputs), *similarity_backward(*inputs, gradient)


if __name__ == "__main__":
    torch.save([run(*case) for case in torch.load(sys.argv[1])], sys.argv[2])
