"""What is run: protocols, trajectories and sweeps, as frozen descriptions whose hash names them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from imp_runs.errors import ImpRunsError

#: Raised by one whenever the arithmetic of a run changes, so that old records are never mixed with new ones.
ARITHMETIC = 1

FAMILIES = ("cifar_resnet", "mlp", "cifar_vgg", "cifar_densenet", "tinyimagenet_resnet", "imagenet_resnet")
#: Depths of the families that have only a few.
DEPTHS = {
    "cifar_vgg": (11, 13, 16, 19),
    "cifar_densenet": (121, 161, 169, 201),
    "tinyimagenet_resnet": (18, 34, 50, 101, 152),
    "imagenet_resnet": (18, 34, 50, 101, 152),
}
#: Number of training examples by name of the dataset.
DATASETS = {
    "digits": 1000,
    "fashion_mnist": 60000,
    "mnist": 60000,
    "cifar10": 50000,
    "cifar100": 50000,
    "svhn": 73257,
    "tinyimagenet": 100000,
    "imagenet": 1281167,
}
#: Datasets read from their files batch by batch; all others are held in memory.
STREAMED = ("imagenet",)
#: What is done to training images; datasets in memory know the first two, streamed ones the first and the last.
AUGMENTATIONS = ("none", "flip_crop", "resized_crop")
#: What convolutions and matrix products are computed in.
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


@dataclass(frozen=True)
class Protocol:
    """Describe how every network of a sweep is trained, pruned and rewound.

    Attributes:
        name: Label under which the protocol appears in the run table.
        epochs: Passes over the training subset at every level; constant across dataset sizes.
        batch_size: Examples per step; a smaller last batch is kept.
        learning_rate: Peak learning rate of SGD.
        momentum: SGD momentum, fresh at every level.
        weight_decay: L2 coefficient on every parameter.
        milestones: Fractions of the steps at which the learning rate is multiplied by `decay`.
        decay: Factor applied at each milestone.
        rewind: Fraction of the steps of level 0 after which the weights to rewind to are stored.
        prune_fraction: Share of the remaining weights removed per round, rounded down.
        levels: Number of pruning rounds; level 0 is the unpruned network.
        augmentation: `"none"`, `"flip_crop"` (horizontal flip, 4-pixel zero-padded crop), or for streamed datasets
            `"resized_crop"` (a random part of the image, resized, and a horizontal flip).
        warmup: Fraction of the steps over which the learning rate rises linearly from 0.
        precision: `"float32"`, or for convolutions and matrix products, in training and in testing, `"bfloat16"` or on
            a GPU `"tensorfloat32"` (their inputs keep 10 of the 23 bits of a float32's fraction); weights, batch norms,
            the loss and the optimiser stay float32.

    Source:
        Rosenfeld, Frankle, Carbin, Shavit, ICML 2021, section 3 and appendix.
    """

    name: str = "desktop"
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    rewind: float = 0.0625
    prune_fraction: float = 0.2
    levels: int = 30
    augmentation: str = "none"
    warmup: float = 0.0
    precision: str = "float32"

    def steps_per_epoch(self, dataset_size: int) -> int:
        """Count the steps of one epoch over `dataset_size` examples."""
        return -(-dataset_size // self.batch_size)

    def steps(self, dataset_size: int) -> int:
        """Count the steps of one training run over `dataset_size` examples."""
        return self.epochs * self.steps_per_epoch(dataset_size)

    def kept_after(self, kept: int) -> int:
        """Count the weights that one round leaves of `kept`; equal to `kept` when none can be removed."""
        return kept - int(Fraction(str(self.prune_fraction)) * kept)

    def faults(self) -> list[str]:
        """List what is wrong with the values, one sentence each."""
        rules = [
            ("epochs", self.epochs >= 1, ">= 1"),
            ("batch_size", self.batch_size >= 1, ">= 1"),
            ("learning_rate", self.learning_rate > 0, "> 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("milestones", all(0 < m < 1 for m in self.milestones), "fractions in (0, 1)"),
            ("decay", 0 < self.decay <= 1, "in (0, 1]"),
            ("rewind", 0 <= self.rewind < 1, "in [0, 1)"),
            ("prune_fraction", 0 < self.prune_fraction < 1, "in (0, 1)"),
            ("levels", self.levels >= 0, ">= 0"),
            ("augmentation", self.augmentation in AUGMENTATIONS, f"one of {', '.join(AUGMENTATIONS)}"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ]
        return [f"protocol.{name} = {getattr(self, name)!r} must be {rule}" for name, ok, rule in rules if not ok]


#: Protocols by name: `paper_cifar` (for all small images) and `paper_imagenet` are the source's, `desktop` the start
#: for small CPU runs. The source's rewinding epoch, 10, is stated for CIFAR, and taken for ImageNet too.
PROTOCOLS: dict[str, Protocol] = {
    "desktop": Protocol(),
    "paper_cifar": Protocol(name="paper_cifar", epochs=160, batch_size=128, levels=40, augmentation="flip_crop"),
    "paper_imagenet": Protocol(
        name="paper_imagenet",
        epochs=90,
        batch_size=1024,
        learning_rate=0.4,
        milestones=(30 / 90, 60 / 90, 80 / 90),
        rewind=10 / 90,
        augmentation="resized_crop",
        warmup=5 / 90,
    ),
}


@dataclass(frozen=True)
class Trajectory:
    """Describe one seed of one network, pruned through all its levels.

    Attributes:
        family: One of `FAMILIES`.
        dataset: Name of the dataset.
        depth: Number of weight layers (`cifar_resnet`: 6D+2; `mlp`: hidden layers + 1; else one of `DEPTHS`).
        width: Base channels, hidden units (`mlp`) or growth rate (`cifar_densenet`).
        dataset_size: Number of training examples.
        replicate: Seed of initialisation, order, augmentation and subset.
        pool: Side of the square over which images are mean-pooled; 1 leaves them as they are.
        protocol: How it is trained and pruned.
        levels: Its own number of pruning rounds, where that is not the protocol's.
    """

    family: str
    dataset: str
    depth: int
    width: int
    dataset_size: int
    replicate: int
    pool: int
    protocol: Protocol
    levels: int | None = None

    @property
    def last_level(self) -> int:
        """Level after which it has ended."""
        return self.protocol.levels if self.levels is None else self.levels

    @property
    def described(self) -> dict[str, Any]:
        """Give all but the protocol; `levels` takes part where it is used, so old names stay."""
        fields = dataclasses.asdict(self)
        del fields["protocol"]
        if self.levels is None:
            del fields["levels"]
        return fields

    @property
    def key(self) -> str:
        """Name the trajectory by the hash of everything that decides its numbers."""
        return digest({"arithmetic": ARITHMETIC, **self.described, "protocol": _hashed(self.protocol)})

    def seed(self, purpose: str, *counters: int) -> int:
        """Draw the seed of one use of randomness from its counter.

        The protocol takes no part, so that a longer training starts from the same weights; the subset depends on
        dataset and replicate alone, so that subsets are nested across sizes and shared across networks.
        """
        who: list[Any] = [self.dataset, self.replicate]
        if purpose != "subset":
            who += [self.family, self.depth, self.width, self.dataset_size]
        return int(digest([*who, purpose, *counters], length=15), 16)

    @property
    def subset_id(self) -> str:
        """Name the order of examples from which nested subsets are cut."""
        return f"{self.seed('subset'):015x}"[:8]

    def __str__(self) -> str:
        name = f"{self.family} depth {self.depth} width {self.width}"
        return f"{name} {self.dataset} n={self.dataset_size} replicate {self.replicate}"


@dataclass(frozen=True)
class Sweep:
    """Describe a grid of trajectories under one protocol.

    Attributes:
        name: Label of the sweep.
        trajectories: What it expands to, in the order in which it is run.
        protocol: The one protocol of all of them.
    """

    name: str
    trajectories: tuple[Trajectory, ...]
    protocol: Protocol


def digest(value: Any, length: int = 16) -> str:
    """Hash a JSON-serialisable value to `length` hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def protocol_hash(protocol: Protocol) -> str:
    """Hash a protocol together with the version of the arithmetic."""
    return digest({"arithmetic": ARITHMETIC, **_hashed(protocol)})


#: Fields that protocols did not have from the beginning.
_LATER = {"warmup", "precision"}


def _hashed(protocol: Protocol) -> dict[str, Any]:
    """Give the fields that name a protocol; those added later take part where they are used, so old names stay."""
    fields = dataclasses.asdict(protocol)
    for field in dataclasses.fields(protocol):
        if field.name in _LATER and fields[field.name] == field.default:
            del fields[field.name]
    return fields


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep from a TOML file.

    The file has `name`, a `[grid]` table (`family`, `dataset`, `replicates`, lists `depth`, `width`, `dataset_size`,
    optional `pool`, `first_replicate` and `levels`) or several, each `[[grid]]`, and an optional `[protocol]` table:
    `name` picks a named protocol, all else overrides it. `levels` of a grid is how many rounds its networks are pruned,
    fewer or more than the protocol's; a trajectory of two grids goes as far as the longer one.

    Args:
        path: The TOML file.

    Returns:
        The sweep, its trajectories ordered by replicate, then from the cheapest network to the dearest, so that what
        is finished early is a whole replicate of the small networks.

    Raises:
        ImpRunsError: The file is missing, is no TOML, or has unknown, missing or impossible entries (all are listed).

    Example:
        >>> import tempfile, pathlib
        >>> text = '''
        ... name = "toy"
        ... [grid]
        ... family = "mlp"
        ... dataset = "digits"
        ... depth = [2, 3]
        ... width = [8]
        ... dataset_size = [100]
        ... replicates = 2
        ... '''
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "toy.toml"
        >>> _ = file.write_text(text)
        >>> len(load_sweep(file).trajectories)
        4
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ImpRunsError(f"{path}: there is no such sweep file; give the path of a TOML file.") from None
    except OSError as error:
        raise ImpRunsError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ImpRunsError(f"{path}: not a TOML file ({error}); mend the line it names.") from None
    return sweep_from_dict(content, where=str(path))


def sweep_from_dict(content: Mapping[str, Any], *, where: str = "sweep") -> Sweep:
    """Build a sweep from the content of its TOML file; `where` is named in errors."""
    faults = [f"unknown entry {key!r}; allowed: name, grid, protocol" for key in sorted(content.keys() - _TOP)]
    faults += [f"missing entry {key!r}" for key in ("name", "grid") if key not in content]
    given = {key: content.get(key, {}) for key in ("grid", "protocol")}
    several = isinstance(given["grid"], list) and given["grid"]
    grids: list[Any] = given["grid"] if several else [given["grid"]]
    no_tables = [key for key, tables in (("grid", grids), ("protocol", [given["protocol"]])) if not _are_tables(tables)]
    faults += [f"{key} = {given[key]!r} must be a table, [{key}]" for key in no_tables]
    protocol, protocol_faults = _protocol({} if "protocol" in no_tables else given["protocol"])
    faults += protocol_faults
    if "grid" in content and "grid" not in no_tables:
        faults += [fault for grid in grids for fault in [*_grid_faults(grid), *_augmentation_faults(grid, protocol)]]
    if faults:
        raise ImpRunsError(f"{where}: " + "; ".join(faults) + ".")
    longest: dict[Trajectory, Trajectory] = {}
    for trajectory in itertools.chain.from_iterable(_expand(grid, protocol) for grid in grids):
        network = dataclasses.replace(trajectory, levels=None)
        longest[network] = max(trajectory, longest.get(network, trajectory), key=lambda t: t.last_level)
    order = sorted(longest.values(), key=lambda t: (t.replicate, t.dataset_size * t.depth * t.width))
    return Sweep(str(content["name"]), tuple(order), protocol)


def _are_tables(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _expand(grid: Mapping[str, Any], protocol: Protocol) -> list[Trajectory]:
    """List the trajectories of one grid."""
    first = grid.get("first_replicate", 0)
    replicates = range(first, first + grid["replicates"])
    what, pool, levels = (grid["family"], grid["dataset"]), grid.get("pool", 1), grid.get("levels", protocol.levels)
    levels = None if levels == protocol.levels else levels
    return [
        Trajectory(*what, depth, width, size, replicate, pool, protocol, levels)
        for replicate, depth, width, size in itertools.product(replicates, *(_distinct(grid[axis]) for axis in _AXES))
    ]


_TOP = {"name", "grid", "protocol"}
_AXES = ("depth", "width", "dataset_size")
_OPTIONAL = {"pool", "first_replicate", "levels"}
_GRID = {"family", "dataset", "replicates", *_OPTIONAL, *_AXES}


def _distinct(values: Iterable[int]) -> list[int]:
    return sorted(set(values))


def _protocol(entries: Mapping[str, Any]) -> tuple[Protocol, list[str]]:
    name = entries.get("name", "desktop")
    base = PROTOCOLS.get(str(name), Protocol(name=str(name)))
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(Protocol)}
    faults, values = [], {}
    for key, value in entries.items():
        if key not in fields:
            faults.append(f"unknown entry protocol.{key}; allowed: {', '.join(fields)}")
            continue
        default = fields[key]
        if isinstance(default, tuple) and _are_numbers(value):
            values[key] = tuple(float(v) for v in value)
        elif isinstance(default, float) and _is_number(value):
            values[key] = float(value)
        elif type(value) is type(default):
            values[key] = value
        else:
            faults.append(f"protocol.{key} = {value!r} must be of type {type(default).__name__}")
    protocol = dataclasses.replace(base, **values)
    return protocol, faults + protocol.faults()


def _grid_faults(grid: Mapping[str, Any]) -> list[str]:
    faults = [f"unknown entry grid.{key}; allowed: {', '.join(sorted(_GRID))}" for key in sorted(grid.keys() - _GRID)]
    faults += [f"missing entry grid.{key}" for key in sorted(_GRID - _OPTIONAL - grid.keys())]
    for key, allowed in (("family", FAMILIES), ("dataset", tuple(DATASETS))):
        if key in grid and grid[key] not in allowed:
            faults.append(f"grid.{key} = {grid[key]!r} must be one of {', '.join(allowed)}")
    for key, least in (("replicates", 1), ("pool", 1), ("first_replicate", 0), ("levels", 0)):
        if key in grid and not (_is_integer(grid[key]) and grid[key] >= least):
            faults.append(f"grid.{key} = {grid[key]!r} must be an integer >= {least}")
    for key in _AXES:
        values = grid.get(key, [1])
        if not (isinstance(values, list) and values and all(_is_integer(v) and v >= 1 for v in values)):
            faults.append(f"grid.{key} = {values!r} must be a list of integers >= 1")
        elif key == "depth" and key in grid:
            faults += [fault for depth in values if (fault := depth_fault(str(grid.get("family", "")), depth))]
        elif key == "dataset_size" and key in grid:
            name = grid.get("dataset")
            largest = DATASETS.get(name) if isinstance(name, str) else None
            faults += [fault for size in values if largest and (fault := size_fault(str(name), size, largest))]
    return faults


def _augmentation_faults(grid: Mapping[str, Any], protocol: Protocol) -> list[str]:
    """Say that a dataset does not know the protocol's augmentation."""
    dataset, asked = grid.get("dataset"), protocol.augmentation
    if dataset not in list(DATASETS) or asked not in AUGMENTATIONS:
        return []  # named elsewhere
    allowed = ("none", "resized_crop") if dataset in STREAMED else ("none", "flip_crop")
    return (
        [] if asked in allowed else [f"protocol.augmentation = {asked!r} must be {' or '.join(allowed)} for {dataset}"]
    )


def depth_fault(family: str, depth: int) -> str | None:
    """Say why a family has no network of this depth, or nothing."""
    if family == "cifar_resnet" and (depth < 8 or (depth - 2) % 6):
        return f"grid.depth {depth} must be 6D+2 with D >= 1 for cifar_resnet: 8, 14, 20, 26, ..."
    if family == "mlp" and depth < 2:
        return f"grid.depth {depth} must be hidden layers + 1, so at least 2, for mlp"
    if depth not in (allowed := DEPTHS.get(family, (depth,))):
        return f"grid.depth {depth} must be one of {', '.join(map(str, allowed))} for {family}"
    return None


def size_fault(dataset: str, dataset_size: int, largest: int) -> str | None:
    """Say why a subset is too large for its dataset of `largest` training examples, or nothing."""
    if dataset_size > largest:
        return f"dataset_size {dataset_size} is more than the {largest} training examples of {dataset}"
    return None


def check_sizes(trajectories: Iterable[Trajectory]) -> None:
    """Raise an `ImpRunsError` if any trajectory wants more training examples than its dataset has."""
    wanted = sorted({(t.dataset, t.dataset_size) for t in trajectories if t.dataset in DATASETS})
    if faults := [fault for dataset, size in wanted if (fault := size_fault(dataset, size, DATASETS[dataset]))]:
        raise ImpRunsError("; ".join(faults) + "; choose at most that.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(v) for v in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
