"""The one exception that `imp_runs` raises for bad input, and nothing else."""


class ImpRunsError(ValueError):
    """Say what was wrong, where, what is allowed and what to do next."""
