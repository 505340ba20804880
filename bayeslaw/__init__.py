"""Bayesian scaling laws for iterative magnitude pruning.

Runs -> fit -> predict -> plan. Names are loaded when they are first used, so that importing the package is quick.
"""

import importlib
from typing import Any

_WHERE = {
    "BayeslawError": "errors",
    "RunTableError": "errors",
    "Campaign": "campaign",
    "Replay": "campaign",
    "autopilot": "campaign",
    "load_runs": "runs",
    "load_recorded": "runs",
    "recorded_names": "runs",
    "Family": "families",
    "default_priors": "priors",
    "prior_table": "priors",
    "Fit": "posterior",
    "fit": "fitting",
    "load": "fit_file",
    "load_pooled": "fit_file",
    "PooledFit": "pooled",
    "Diagnosis": "diagnostics",
    "Comparison": "comparison",
    "compare": "comparison",
    "CrossValidation": "cross_validation",
    "cross_validate": "cross_validation",
    "Conclusions": "conclusions",
    "conclude": "conclusions",
    "Plan": "plan",
    "frontier": "frontiers",
    "pareto": "frontiers",
    "LeastSquares": "baseline",
    "least_squares": "baseline",
    "bootstrap": "bootstrapping",
    "bootstrap_parameters": "bootstrapping",
    "Check": "checking",
    "check": "checking",
    "Evaluation": "calibration",
    "evaluate": "calibration",
    "PlanEvaluation": "plan_evaluation",
    "evaluate_plans": "plan_evaluation",
    "learning_curve": "sufficiency",
    "PriorPredictive": "prior_draws",
    "predictive_check": "predictive_checks",
    "prior_predictive": "prior_draws",
    "Suggestion": "design",
    "suggest": "design",
    "size_draws": "frontiers",
    "width_grid": "starts",
}
__all__ = [
    "BayeslawError",
    "Campaign",
    "Check",
    "Comparison",
    "Conclusions",
    "CrossValidation",
    "Diagnosis",
    "Evaluation",
    "Family",
    "Fit",
    "LeastSquares",
    "Plan",
    "PlanEvaluation",
    "PooledFit",
    "PriorPredictive",
    "Replay",
    "RunTableError",
    "Suggestion",
    "autopilot",
    "bootstrap",
    "bootstrap_parameters",
    "check",
    "compare",
    "conclude",
    "cross_validate",
    "default_priors",
    "evaluate",
    "evaluate_plans",
    "fit",
    "frontier",
    "learning_curve",
    "least_squares",
    "load",
    "load_pooled",
    "load_recorded",
    "load_runs",
    "pareto",
    "predictive_check",
    "prior_predictive",
    "prior_table",
    "recorded_names",
    "size_draws",
    "suggest",
    "width_grid",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bayeslaw' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"bayeslaw.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
