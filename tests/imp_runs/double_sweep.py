"""The command `imp-runs` in double precision, where two processes and one give the same table."""

import torch

from imp_runs.cli import main

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    main()
