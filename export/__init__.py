"""edgellm.export: from a checkpoint to a bundle. torch lives in this package and nowhere else."""

import os

# torch's threads spin at every barrier by default: beside one busy process, writing calibration text took ten times as
# long (8 minutes for 30 s of work). Sleeping costs 15 % when nothing else runs. Read when torch loads its OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
