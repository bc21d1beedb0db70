"""NVFP4 experts and the denoise head, as Triton kernels with a torch twin beside each. Empty so far: nothing is written yet."""
