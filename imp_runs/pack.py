"""Trajectories of one architecture and dataset size together on one device: their levels, in stacks."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from imp_runs.config import STREAMED, Trajectory
from imp_runs.errors import BusyError, ImpRunsError, StoppedError
from imp_runs.examples import HeldExamples, Source
from imp_runs.imp import Levels
from imp_runs.network import State
from imp_runs.packing import alike
from imp_runs.stacked import StackedExamples, StackedNetwork, StackedSteps, members_of
from imp_runs.steps import name_kernels, wrong_of
from imp_runs.store import Checkpoint, Store
from imp_runs.train import check_size, train

#: A trajectory of the pack and what it goes on with.
Ready = tuple[Levels, Checkpoint]


def run_pack(
    trajectories: Sequence[Trajectory],
    dataset: Source,
    store: Store,
    *,
    size: int,
    device: torch.device | str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[str] | Exception]:
    """Run trajectories, up to `size` of them at once: the levels of those that stand at the same step are a stack.

    Where one ends another takes its place. Each has its own seeds, masks and subset, and what comes out is what
    `imp_runs.imp.run_trajectory` gives but for rounding. Every level is a record and a checkpoint of its own
    trajectory, so that a pack that was interrupted may go on as another one, or one by one.

    Args:
        trajectories: Of one family, depth, width, dataset and dataset size.
        dataset: Their dataset, in memory.
        store: Where records and checkpoints go.
        size: Networks of a stack; more cost memory.
        device: Where they are computed.
        stop: Asked after every step; when it says yes, checkpoints inside the level are written and all end.

    Returns:
        By trajectory: what was damaged and has been set aside, or why it failed (a `BusyError` where another process
        runs it).

    Raises:
        ImpRunsError: They are not alike, or the dataset is streamed.
        StoppedError: `stop` said yes.
    """
    _check_alike(trajectories, dataset)
    device = torch.device(device)
    dataset = dataset.to(device)
    ended: dict[str, list[str] | Exception] = {t.key: [] for t in trajectories}
    ready: list[Ready] = []
    with contextlib.ExitStack() as owned:
        for trajectory in trajectories:
            if store.is_whole(trajectory.key):
                continue
            try:
                owned.enter_context(store.locked(trajectory))
            except BusyError as busy:
                ended[trajectory.key] = busy
                continue
            ended[trajectory.key] = store.mend(trajectory.key)
            levels = Levels(trajectory, dataset, store, device, stop)
            owned.callback(levels.watch.life.end)
            ready.append((levels, levels.first()))
        while ready:
            stack = _stackable(ready)[:size]
            ready = [one for one in ready if one not in stack]
            for (levels, _), following in zip(stack, _run_level(stack, size), strict=True):
                if isinstance(following, Exception):
                    ended[levels.trajectory.key] = following
                elif following:
                    ready.append((levels, following))
    return ended


def _check_alike(trajectories: Sequence[Trajectory], dataset: Source) -> None:
    if len(kinds := {alike(t) for t in trajectories}) != 1:
        raise ImpRunsError(f"a pack needs trajectories of one architecture and dataset size; got {len(kinds)} kinds.")
    if trajectories[0].dataset in STREAMED:
        raise ImpRunsError(f"{trajectories[0].dataset} is streamed, and its trajectories are run one by one: --pack 1.")
    check_size(dataset, trajectories[0])


def _stackable(ready: list[Ready]) -> list[Ready]:
    """Choose the most that stand at the same step; all levels but the first begin at the rewinding step."""
    by: defaultdict[tuple[bool, int], list[Ready]] = defaultdict(list)
    for levels, begun in ready:
        by[begun.level > 0, begun.inside.step if begun.inside else 0].append((levels, begun))
    return max(by.values(), key=len)


def _run_level(group: list[Ready], size: int) -> list[Checkpoint | Exception | None]:
    """Train a level of all, and finish each; give the checkpoints of the next levels, or why one failed."""
    for levels, begun in group:
        levels.begin(begun, share=1 / len(group))
    first, begun = group[0]
    trajectory, dataset, schedule = first.trajectory, first.dataset, first.schedule(begun)
    network = StackedNetwork([levels.network for levels, _ in group], size)
    steps = StackedSteps(network, trajectory.protocol)
    filled = [group[place % len(group)][1] for place in range(size)]
    if begun.inside:
        steps.velocity = network.stack([own.inside.velocity.to(first.device) for own in filled if own.inside])
    if schedule["rewind_state"]:
        schedule["rewind_state"] = {name: torch.stack([own.state[name] for own in filled]) for name in begun.state}
    held = [levels.examples for levels, _ in group if isinstance(levels.examples, HeldExamples)]
    examples = StackedExamples(held, [levels.trajectory for levels, _ in group], [own.level for _, own in group], size)

    def after_step(step: int, rewind_state: State) -> None:
        due = [levels.watch.is_due(step) for levels, _ in group]
        if any(due):
            network.give_back()
            velocities = network.unstack(steps.velocity)
            for (levels, _), state, velocity in zip(group, members_of(rewind_state), velocities, strict=False):
                levels.watch.keep(step, state, levels.network, velocity)
            for levels, _ in group:
                levels.watch.stop_if_asked(step)

    state = train(steps, examples, trajectory, begun.level, after_step=after_step, **schedule)
    wrong = wrong_of(steps, dataset).tolist()
    network.give_back()
    computed_by = f"{name_kernels('torch', trajectory, dataset, first.device)} stack of {size}"
    following: list[Checkpoint | Exception | None] = []
    for (levels, own), rewound, missed in zip(group, members_of(state), wrong, strict=False):
        try:
            following.append(levels.finish(own, rewound, missed, computed_by))
        except StoppedError:
            raise
        except Exception as error:
            following.append(error)
    return following
