"""The step on an NVIDIA GPU: kernels in Triton and what drives them. Imported only where the device is one."""
