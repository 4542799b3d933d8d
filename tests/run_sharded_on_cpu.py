"""`train_accelerate.py` under an engine that shards, on CPUs: accelerate itself runs such an engine on GPUs alone.

It is told that every process has a GPU, whose device is the CPU and whose backend is gloo; trainer and engine are what
they are on GPUs.
"""

import os
import runpy

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from training import build


class AcceleratorOnGpus(Accelerator):
    def __init__(self, cpu: bool, **kwargs):
        super().__init__(**kwargs)


os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
build.Accelerator = AcceleratorOnGpus
runpy.run_path("train_accelerate.py", run_name="__main__")
