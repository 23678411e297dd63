"""What is raised where a GPU's memory is used up: by torch, by cuBLAS, and by the driver."""

import torch

USED_UP = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
)
