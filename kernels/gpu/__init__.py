"""The operators in Triton, for NVIDIA GPUs: README.md in this folder is the contract of whoever launches the cubins.

The modules with kernels import triton, which only whoever compiles or tests them has; nothing of the device's does.
"""
