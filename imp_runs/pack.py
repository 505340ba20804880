"""Trajectories of one dataset size together on one device: their levels, in stacks that lie side by side."""

from __future__ import annotations

import contextlib
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

import torch

from imp_runs.config import STREAMED, Trajectory
from imp_runs.errors import ImpRunsError, StoppedError
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
    pack that was interrupted may go on as another one, or one by one. No more are held than are needed, twice as many
    as are trained at once.

    Args:
        trajectories: Of one dataset and dataset size.
        dataset: Their dataset, in memory.
        store: Where records and checkpoints go.
        way: How many are trained together; more cost memory.
        device: Where they are computed.
        stop: Asked after every step and between test batches; when it says yes, checkpoints inside the level are
            written and all end.

    Returns:
        By trajectory: what was damaged and has been set aside, or why it failed (a `BusyError` where another process
        runs it). Where a level of a stack fails, for want of memory say, its members do, and the others go on.

    Raises:
        ImpRunsError: They are not alike, or the dataset is streamed.
        StoppedError: `stop` said yes.
    """
    _check_alike(trajectories, dataset)
    device = torch.device(device)
    dataset = dataset.to(device)
    pack = _Pack(dataset, way)
    with _Held(trajectories, dataset, store, way, device, stop) as held:
        while ready := held.fill_up():
            held.go_on(pack.run_level(pack.choose(ready)))
    return held.ended


def _check_alike(trajectories: Sequence[Trajectory], dataset: Source) -> None:
    if len(kinds := {alike(t) for t in trajectories}) != 1:
        raise ImpRunsError(f"a pack needs trajectories of one dataset and dataset size; got {len(kinds)} kinds.")
    if trajectories[0].dataset in STREAMED:
        raise ImpRunsError(
            f"{trajectories[0].dataset} is streamed, and its trajectories are run one by one: --pack 1 --streams 1."
        )
    check_size(dataset, trajectories[0])


class _Held:
    """Own the trajectories of a pack while they run; what ends lets go of its lock, and others take its place.

    Arguments are those of `run_pack`.

    Attributes:
        ended: What `run_pack` returns.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        dataset: Source,
        store: Store,
        way: Way,
        device: torch.device,
        stop: Callable[[], bool],
    ) -> None:
        self.ended: dict[str, list[str] | Exception] = {t.key: [] for t in trajectories}
        self._waiting = deque(t for t in trajectories if not store.is_whole(t.key))
        self._most = 2 * way.pack * way.streams
        self._dataset, self._store, self._device, self._stop = dataset, store, device, stop
        self._ready: dict[str, Ready] = {}
        self._owned: dict[str, contextlib.ExitStack] = {}

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._owned):
            self._let_go(key)

    def fill_up(self) -> list[Ready]:
        """Hold as many as there is room for; give all that are ready for a level."""
        while self._waiting and len(self._ready) < self._most:
            self._begin(self._waiting.popleft())
        return list(self._ready.values())

    def go_on(self, following: Mapping[str, Checkpoint | Exception | None]) -> None:
        """Take in with what each goes on, nothing where it has ended, or why it failed."""
        for key, following_one in following.items():
            if isinstance(following_one, Checkpoint):
                self._ready[key] = self._ready[key][0], following_one
                continue
            self.ended[key] = following_one or self.ended[key]
            del self._ready[key]
            self._let_go(key)

    def _begin(self, trajectory: Trajectory) -> None:
        key, own = trajectory.key, contextlib.ExitStack()
        self._owned[key] = own
        try:
            own.enter_context(self._store.locked(trajectory))
            self.ended[key] = self._store.mend(key)
            levels = Levels(trajectory, self._dataset, self._store, self._device, self._stop)
            own.callback(levels.watch.life.end)
            if first := levels.first():
                self._ready[key] = levels, first
        except Exception as error:
            self.ended[key] = error
        if key not in self._ready:
            self._let_go(key)

    def _let_go(self, key: str) -> None:
        self._owned.pop(key).close()


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
        """Train a level of all, and finish each; give the checkpoints of the next levels, or why one or all failed."""
        try:
            return self._run_level(groups)
        except StoppedError:
            raise
        except Exception as error:
            self._made = None
            traceback.clear_frames(error.__traceback__)  # they hold the memory that others need
            return {levels.trajectory.key: error for group in groups for levels, _ in group}

    def _run_level(self, groups: Sequence[Sequence[Ready]]) -> dict[str, Checkpoint | Exception | None]:
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
        at_once = evaluated_at_once(self._way)
        wrong = wrong_of(steps, self._dataset, at_once, lambda: after_step(first.steps, state)).tolist()
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
