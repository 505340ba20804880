"""What each part of the model is worth: fit one table in several ways, and leave whole trajectories out.

    uv run python tests/benchmarks/variants.py digits_resnet -o variants
    uv run python tests/benchmarks/variants.py digits_resnet -o variants --only default law=joint

Prints what `compare` estimates from one fit each, and the same for trajectories exactly, from a fit without each third
of them. Digits took two and a half hours of one core; fits and scores are kept in the folder, and not made again.
"""

import argparse
from pathlib import Path

import numpyro.distributions as dist

import bayeslaw

VARIANTS = {
    "default": {},
    "law=dip": {"law": "dip"},
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
    "subsets=False": {"subsets": False},
    "curvature=False": {"curvature": False},
    "lasting=0": {"priors": {"lasting": dist.Beta(1.0, 1e4)}},
}
FOLDS = 3


def main() -> None:
    """Fit, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", default="digits_resnet")
    parser.add_argument("-o", "--output", type=Path, default=Path("variants"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    arguments = parser.parse_args()
    runs, fits = bayeslaw.load_recorded(arguments.sweep), {}
    folder = arguments.output / arguments.sweep
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, settings) in enumerate(VARIANTS.items()):
        path = folder / f"{number}.nc"
        if name not in arguments.only:
            continue
        if not path.exists():
            bayeslaw.fit(runs, **settings).save(path)
        fits[name] = bayeslaw.load(path)
    print(bayeslaw.compare(fits))
    path = folder / "cross_validation.csv"
    print(bayeslaw.cross_validate(fits, leave_out="trajectories", folds=FOLDS, path=path))


if __name__ == "__main__":
    main()
