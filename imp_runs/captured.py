"""CUDA graphs: what a function launches on a GPU, recorded once and replayed at the cost of one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


class Captured:
    """Replay what a function launches, on other inputs of the same shapes.

    Args:
        compute: What is recorded; it reads and writes tensors that stay where they are. It is called three times.
        inputs: Tensors of the shapes that it will be replayed with.
        pool: Memory shared with other graphs (`torch.cuda.graph_pool_handle`): what one gives back is read before
            another is replayed.
    """

    def __init__(self, compute: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], pool: object) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        main, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(main)
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries set themselves up in the first calls, which no graph can hold
                compute(*self._inputs)
        main.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):  # pyright: ignore[reportArgumentType]
            self._output = compute(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Replay, and give what the function gave, which the next replay overwrites."""
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return self._output


def side_by_side(tasks: Sequence[Callable[[], torch.Tensor]], streams: Sequence[torch.cuda.Stream]) -> torch.Tensor:
    """Run tasks, on a GPU each on its own stream, and put what they give one behind the other.

    Args:
        tasks: What is run.
        streams: As many streams; none on a CPU.
    """
    if not streams:
        return torch.cat([task() for task in tasks])
    main, given = torch.cuda.current_stream(), []
    for task, stream in zip(tasks, streams, strict=True):
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            given.append(task())
    for stream in streams:
        main.wait_stream(stream)
    return torch.cat(given)
