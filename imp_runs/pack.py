"""Trajectories of one dataset size together on one device: their levels, in stacks that lie side by side."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from imp_runs.config import STREAMED, Trajectory
from imp_runs.errors import BusyError, ImpRunsError, StoppedError
from imp_runs.examples import HeldExamples, Source
from imp_runs.imp import Levels
from imp_runs.network import Network, State
from imp_runs.packing import Way, alike, architecture
from imp_runs.stacked import StackedExamples, StackedNetwork, StackedSteps
from imp_runs.steps import EVALUATION_BATCH, choose_kernels, name_kernels, wrong_of
from imp_runs.store import Checkpoint, Store
from imp_runs.train import check_size, train

#: A trajectory of the pack and what it goes on with.
Ready = tuple[Levels, Checkpoint]


def run_pack(
    trajectories: Sequence[Trajectory],
    dataset: Source,
    store: Store,
    way: Way,
    *,
    device: torch.device | str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[str] | Exception]:
    """Run trajectories, up to `way.pack` of an architecture in a stack and up to `way.streams` stacks, at once.

    The levels of those that stand at the same step are trained together; where one ends another takes its place. Each
    has its own seeds, masks and subset, and what comes out is what `imp_runs.imp.run_trajectory` gives but for rounding
    (with a `way.pack` of 1 there is none). Every level is a record and a checkpoint of its own trajectory, so that a
    pack that was interrupted may go on as another one, or one by one.

    Args:
        trajectories: Of one dataset and dataset size.
        dataset: Their dataset, in memory.
        store: Where records and checkpoints go.
        way: How many are trained together; more cost memory.
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
        pack = _Pack(dataset, way)
        while ready:
            groups = pack.choose(ready)
            following = pack.run_level(groups)
            for place, (levels, _) in reversed(list(enumerate(ready))):
                if levels.trajectory.key not in following:
                    continue
                match following[levels.trajectory.key]:
                    case Checkpoint() as next_one:
                        ready[place] = levels, next_one
                    case error:
                        ended[levels.trajectory.key] = error or ended[levels.trajectory.key]
                        del ready[place]
    return ended


def _check_alike(trajectories: Sequence[Trajectory], dataset: Source) -> None:
    if len(kinds := {alike(t) for t in trajectories}) != 1:
        raise ImpRunsError(f"a pack needs trajectories of one dataset and dataset size; got {len(kinds)} kinds.")
    if trajectories[0].dataset in STREAMED:
        raise ImpRunsError(
            f"{trajectories[0].dataset} is streamed, and its trajectories are run one by one: --pack 1 --streams 1."
        )
    check_size(dataset, trajectories[0])


class _Pack:
    """Train levels; what was made for stacks of the same architectures is used again.

    Args:
        dataset: The dataset, on the device.
        way: How many networks are trained together.
    """

    def __init__(self, dataset: Source, way: Way) -> None:
        self._dataset, self._way = dataset, way
        self._made: tuple[list[tuple[object, ...]], StackedNetwork, StackedSteps] | None = None

    def choose(self, ready: Sequence[Ready]) -> list[list[Ready]]:
        """Choose what is trained next: of those that may be, the most, as stacks of one architecture.

        They stand at the same step (all levels but the first begin at the rewinding step), and are computed by the same
        kernels. The choice keeps to the order of the trajectories, so that the same stacks are chosen again while these
        go on.
        """
        by: defaultdict[tuple[object, ...], list[Ready]] = defaultdict(list)
        for levels, begun in ready:
            step = begun.inside.step if begun.inside else 0
            by[begun.level > 0, step, self._kernels(levels)].append((levels, begun))
        architectures: defaultdict[tuple[object, ...], list[Ready]] = defaultdict(list)
        for levels, begun in max(by.values(), key=len):
            architectures[architecture(levels.trajectory)].append((levels, begun))
        size = self._way.pack
        stacks = [own[at : at + size] for own in architectures.values() for at in range(0, len(own), size)]
        return stacks[: self._way.streams]

    def _kernels(self, levels: Levels) -> str:
        return name_kernels("torch", levels.trajectory, self._dataset, levels.device)

    def _make(self, groups: Sequence[Sequence[Ready]]) -> tuple[StackedNetwork, StackedSteps]:
        """Make the stacks, or fill those that are there."""
        architectures = [architecture(group[0][0].trajectory) for group in groups]
        networks: list[list[Network]] = [[levels.network for levels, _ in group] for group in groups]
        if self._made is None or self._made[0] != architectures:
            self._made = None  # gives back its memory first
            network = StackedNetwork(networks, self._way.pack)
            self._made = architectures, network, StackedSteps(network, groups[0][0][0].trajectory.protocol)
        else:
            self._made[1].fill(networks)
            self._made[2].restart()
        return self._made[1:]

    def run_level(self, groups: Sequence[Sequence[Ready]]) -> dict[str, Checkpoint | Exception | None]:
        """Train a level of all, and finish each; give the checkpoints of the next levels, or why one failed."""
        members = [member for group in groups for member in group]
        for levels, begun in members:
            levels.begin(begun, share=1 / len(members))
        first, begun = members[0]
        trajectory, schedule = first.trajectory, first.schedule(begun)
        choose_kernels(trajectory, self._dataset, first.device)
        network, steps = self._make(groups)
        filled = [own for _, own in network.fill_up(groups)]
        if begun.inside:
            steps.velocity = network.stack([own.inside.velocity.to(first.device) for own in filled if own.inside])
        if schedule["rewind_state"]:
            schedule["rewind_state"] = network.state_of([own.state for own in filled])
        places = network.first_places()

        def after_step(step: int, rewind_state: State) -> None:
            due = [levels.watch.is_due(step) for levels, _ in members]
            if any(due):
                network.give_back()
                states, velocities = network.members_of(rewind_state), network.unstack(steps.velocity)
                for (levels, _), place in zip(members, places, strict=True):
                    levels.watch.keep(step, states[place], levels.network, velocities[place])
                for levels, _ in members:
                    levels.watch.stop_if_asked(step)

        state = train(steps, _examples(members, network), trajectory, begun.level, after_step=after_step, **schedule)
        wrong = wrong_of(steps, self._dataset, evaluated_at_once(self._way)).tolist()
        network.give_back()
        states = network.members_of(state)
        computed_by = f"{self._kernels(first)} stack of {self._way.pack}"
        following: dict[str, Checkpoint | Exception | None] = {}
        for (levels, own), place in zip(members, places, strict=True):
            try:
                following[levels.trajectory.key] = levels.finish(own, states[place], wrong[place], computed_by)
            except StoppedError:
                raise
            except Exception as error:
                following[levels.trajectory.key] = error
        return following


def evaluated_at_once(way: Way) -> int:
    """Say how many test images are evaluated at once, so that stacks need little more memory than in training."""
    return max(EVALUATION_BATCH // 10, EVALUATION_BATCH // max(1, way.pack // 4))


def _examples(members: Sequence[Ready], network: StackedNetwork) -> StackedExamples:
    held = [levels.examples for levels, _ in members if isinstance(levels.examples, HeldExamples)]
    trajectories, at = [levels.trajectory for levels, _ in members], [own.level for _, own in members]
    return StackedExamples(held, trajectories, at, network.members_by_place())
