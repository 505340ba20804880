"""One thread for linear algebra: two test processes share the cores, and OpenBLAS's own threads get in their way."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
