"""What each part of the model is worth: fit one table in several ways, and leave whole trajectories out.

    uv run python tests/benchmarks/variants.py digits_resnet

Half an hour on two cores and more. The README's table was made with the joint law and independent noise in the place of
the default.
"""

import sys

import bayeslaw

VARIANTS = {
    "default": {},
    "law=joint": {"law": "joint"},
    "law=anchored": {"law": "anchored"},
    "law=parameter_count": {"law": "parameter_count"},
    "effects=np": {"effects": ["np"]},
    "effects=p": {"effects": ["p"]},
    "steep=False": {"steep": False},
    "noise=normal": {"noise": "normal"},
    "growth=False": {"growth": False},
    "correlated=False": {"correlated": False},
    "law=joint, correlated=False": {"law": "joint", "correlated": False},
}


def main() -> None:
    """Fit, rank, print."""
    runs = bayeslaw.load_recorded(sys.argv[1] if len(sys.argv) > 1 else "digits_resnet")
    fits = {name: bayeslaw.fit(runs, draws=500, **settings) for name, settings in VARIANTS.items()}
    print(bayeslaw.compare(fits))


if __name__ == "__main__":
    main()
