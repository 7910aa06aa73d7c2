"""edgellm.export: from a checkpoint to a bundle. torch lives in this package and nowhere else."""
