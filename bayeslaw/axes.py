"""Coordinates in which a posterior is nearly round, made from its curvature and cheap where groups are independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeslaw.compiled import jit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = jax.Array | NDArray

#: A direction is taken to be no wider than this many units of its unconstrained parameter (prior scales are near 1).
WIDEST = 2.0


class Axes(NamedTuple):
    """Hold a linear map q -> x whose image of a unit Gaussian has a wanted covariance.

    Groups of entries that are independent given the shared ones make the precision an arrowhead, whose factor takes
    groups x (entries + shared) numbers instead of the square of all.

    Attributes:
        shared: Positions of the shared entries, `[shared]`.
        own: Positions of each group's entries, `[groups, entries]`; padded with the number of dimensions.
        shared_factor: Of the covariance of the shared entries, `[shared, shared]`.
        own_factor: Of the covariance of each group given the shared ones, `[groups, entries, entries]`.
        coupling: How each group follows the shared entries, `[groups, entries, shared]`.
    """

    shared: Numbers
    own: Numbers
    shared_factor: Numbers
    own_factor: Numbers
    coupling: Numbers

    def move(self, q: jax.Array) -> jax.Array:
        """Map coordinates `[dimensions]` to a displacement `[dimensions]`."""
        shared = self.shared_factor @ q[self.shared]
        result = jnp.zeros_like(q).at[self.shared].set(shared)
        if not np.size(self.own):
            return result
        own = q.at[self.own].get(mode="fill", fill_value=0.0)
        own = jnp.einsum("gij,gj->gi", self.own_factor, own) - self.coupling @ shared
        return result.at[self.own].set(own, mode="drop")

    def back(self, displacement: NDArray) -> NDArray:
        """Map a displacement `[dimensions]` to coordinates `[dimensions]`."""
        shared = np.asarray(displacement)[np.asarray(self.shared)]
        result = np.zeros(len(displacement) + 1)
        result[self.shared] = np.linalg.solve(self.shared_factor, shared)
        if np.size(self.own):
            own = np.append(displacement, 0.0)[self.own] + np.asarray(self.coupling) @ shared
            result[self.own] = np.linalg.solve(self.own_factor, own[..., None])[..., 0]
        return result[:-1]

    def own_variances(self, dimensions: int) -> NDArray:
        """Give the variance of every group's entries given the shared ones, and 0 for those, `[dimensions]`."""
        result = np.zeros(dimensions + 1)
        result[self.own] = (np.asarray(self.own_factor) ** 2).sum(2)
        return result[:-1]

    def own_variances_of(self, direction: NDArray) -> NDArray:
        """Give the variance, given the shared entries, of each group's part of a weighted sum, `[groups]`."""
        weight = np.append(direction, 0.0)[self.own]
        return (np.einsum("gij,gi->gj", np.asarray(self.own_factor), weight) ** 2).sum(1)

    def dense(self, dimensions: int) -> NDArray:
        """Write the map as a matrix, `[dimensions, dimensions]`."""
        return np.asarray(jax.vmap(self.move, out_axes=1)(jnp.eye(dimensions, dtype=self.shared_factor.dtype)))


def dense_axes(factor: NDArray) -> Axes:
    """Take a matrix for the map, with no groups."""
    size, none = len(factor), np.zeros((0, 0), int)
    return Axes(np.arange(size), none, np.asarray(factor), np.zeros((0, 0, 0)), np.zeros((0, 0, size)))


class Layout(NamedTuple):
    """Hold which entries of a position are shared and which belong to a group, as in `Axes`."""

    shared: NDArray
    own: NDArray


def lay_out(positions: Mapping[str, NDArray], groups: Mapping[str, NDArray]) -> Layout:
    """Sort the entries of named values into shared ones and groups.

    Args:
        positions: Where the entries of every value are in the flat position.
        groups: For values whose entries belong to groups, the group of every entry, numbered from 0.

    Returns:
        The layout.
    """
    dimensions = sum(np.size(where) for where in positions.values())
    named = [(np.ravel(positions[name]), np.asarray(group)) for name, group in groups.items() if name in positions]
    shared = np.sort(np.concatenate([np.ravel(v) for k, v in positions.items() if k not in groups] or [[]])).astype(int)
    if not named:
        return Layout(shared, np.zeros((0, 0), int))
    where, group = (np.concatenate(parts) for parts in zip(*named, strict=True))
    order = np.lexsort((where, group))
    where, group = where[order], group[order]
    sizes = np.bincount(group)
    own = np.full((len(sizes), sizes.max()), dimensions)
    own[group, np.arange(len(group)) - (np.cumsum(sizes) - sizes)[group]] = where
    return Layout(shared, own)


def unit_axes(layout: Layout) -> Axes:
    """Give the axes that change nothing."""
    (groups, entries), count = layout.own.shape, len(layout.shared)
    factor = np.broadcast_to(np.eye(entries), (groups, entries, entries))
    return Axes(layout.shared, layout.own, np.eye(count), factor, np.zeros((groups, entries, count)))


def seeds_of(layout: Layout, dimensions: int) -> NDArray:
    """Give the directions whose products with an arrowhead matrix hold all of it, `[shared + entries, dimensions]`.

    Groups do not touch each other, so that the first entries of all groups share one direction, and so on.
    """
    seeds = np.zeros((len(layout.shared) + layout.own.shape[1], dimensions + 1))
    seeds[np.arange(len(layout.shared)), layout.shared] = 1.0
    for entry in range(layout.own.shape[1]):
        seeds[len(layout.shared) + entry, layout.own[:, entry]] = 1.0
    return seeds[:, :dimensions]


def axes_from(layout: Layout, products: NDArray) -> tuple[Axes, int]:
    """Make the axes of a precision matrix from its products with the layout's seeds.

    Args:
        layout: Which entries are shared.
        products: Precision times every seed, `[shared + entries, dimensions]`.

    Returns:
        The axes, and the number of directions that are flat or curve downwards and got the widest variance instead.
    """
    count = len(layout.shared)
    padded = np.pad(products, ((0, 0), (0, 1)))
    shared = padded[:count, layout.shared]
    coupling = np.moveaxis(padded[:count][:, layout.own], 0, -1)
    blocks = np.moveaxis(padded[count:][:, layout.own], 0, -1)
    padding = layout.own == products.shape[1]
    blocks = blocks + padding[:, :, None] * np.eye(layout.own.shape[1])
    inverse, own_factor, clipped_own = _invert(blocks)
    following = inverse @ coupling
    remaining = shared - np.einsum("gis,git->st", coupling, following)
    _, shared_factor, clipped = _invert(remaining[None])
    return Axes(layout.shared, layout.own, shared_factor[0], own_factor, following), clipped + clipped_own


def _invert(matrices: NDArray) -> tuple[NDArray, NDArray, int]:
    """Invert symmetric matrices, `[groups, n, n]`, and take the roots of the inverses; count the directions replaced.

    The root is the symmetric one, which keeps padding apart from the rest.
    """
    values, vectors = np.linalg.eigh(0.5 * (matrices + np.swapaxes(matrices, 1, 2)))
    enough = WIDEST**-2
    kept = np.maximum(values, enough)
    transposed = np.swapaxes(vectors, 1, 2)
    inverse, root = ((vectors * power[:, None, :]) @ transposed for power in (1 / kept, 1 / np.sqrt(kept)))
    return inverse, root, int((values < enough).sum())


def refine(axes: Axes, q: NDArray) -> tuple[NDArray, Axes]:
    """Move and reshape the axes by draws in their coordinates.

    A mode and the curvature there say little of skewed directions, and nothing of those whose variance was guessed. The
    shared entries get the draws' mean, and their covariance drawn towards the axes' own, the more so the fewer draws
    there are. Each entry of a group gets mean and variance of its own as far as these differ between entries by more
    than chance, which the chains' differences tell; means are drawn towards the axes' origin, variances towards that of
    all entries.

    Args:
        axes: The axes.
        q: Coordinates of draws, `[chains, draws, dimensions]`, of two chains at least.

    Returns:
        The middle in those coordinates, `[dimensions]`, and the new axes.
    """
    q = np.asarray(q)
    pooled = q.reshape(-1, q.shape[-1])
    shared = pooled[:, np.asarray(axes.shared)]
    count, size = shared.shape
    weight = count / (count + 2 * size)
    covariance = weight * np.cov(shared.T).reshape(size, size) + (1 - weight) * np.eye(size)
    middle = pooled.mean(0)
    axes = axes._replace(shared_factor=np.asarray(axes.shared_factor) @ np.linalg.cholesky(covariance))
    if not np.size(axes.own):
        return middle, axes
    own = np.setdiff1d(np.asarray(axes.own), [len(middle)])
    middle[own] *= _share_beyond_chance(q.mean(1)[:, own], 0.0)
    log_variance = np.log(q.var(1)[:, own])
    typical = log_variance.mean()
    spread = np.zeros(len(middle) + 1)
    spread[own] = typical + _share_beyond_chance(log_variance, typical) * (log_variance.mean(0) - typical)
    longer = np.exp(0.5 * spread[np.asarray(axes.own)])
    return middle, axes._replace(own_factor=np.asarray(axes.own_factor) * longer[:, None])


def _share_beyond_chance(estimates: NDArray, centre: float) -> float:
    """Give the share of the spread of mean estimates around a centre that is not between chains, `[chains, entries]`.

    It is the factor of James and Stein (1961), with the variance of the estimates from the chains.
    """
    chance = float(np.mean(np.var(estimates, axis=0, ddof=1))) / len(estimates)
    return max(0.0, 1 - chance / max(float(np.mean((estimates.mean(0) - centre) ** 2)), 1e-300))


@jit
def moved(axes: Axes, q: Numbers) -> jax.Array:
    """Map coordinates to a displacement (`Axes.move`), compiled."""
    return axes.move(jnp.asarray(q))


@jit(static_argnums=0)
def value_and_gradient(
    potential: Callable[[Any, jax.Array], jax.Array], context: Any, centre: Numbers, axes: Axes, q: Numbers
) -> tuple[jax.Array, jax.Array]:
    """Compute a negative log density and its gradient in coordinates q of x = centre + axes q.

    Args:
        potential: Negative log density of context and flat position; compiled once for it and the shapes.
        context: What it depends on besides, a pytree of arrays.
        centre: Origin of the coordinates, `[dimensions]`.
        axes: Their axes.
        q: Coordinates, `[dimensions]`.
    """
    origin = jnp.asarray(centre)
    return jax.value_and_grad(lambda q: potential(context, origin + axes.move(q)))(jnp.asarray(q))
