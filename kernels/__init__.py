"""edgellm.kernels: the operators, their reference in NumPy and their native implementations."""
