"""Without a GPU the Triton kernels run through Triton's interpreter, which is to be asked for before their import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
