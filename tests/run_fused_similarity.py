"""The kernels of the fused similarity in triton's interpreter, on tensors that a test saved: for a process of its own,
since triton reads `TRITON_INTERPRET` when it is imported."""

import sys

import torch

from modeling_alta.fused_similarity_alta import similarity_backward, similarity_forward


inputs, gradient = torch.load(sys.argv[1])
torch.save((similarity_forward(*inputs), *similarity_backward(*inputs, gradient)), sys.argv[2])
