"""NVFP4 experts, the denoise head and what stands between them, as Triton kernels with a torch twin beside each."""
