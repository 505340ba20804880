"""Training steps on a CPU that skip pruned weights: the examples of a batch are innermost in memory.

Every kept weight is one multiply-add over a whole row of a feature map and a whole batch, whatever its neighbours are,
so the work falls with the density, and narrow layers fill the vector units as well as wide ones. Feature maps are
`[channel, row, column x example]`, with a border of zeros where a 3x3 convolution reads them.

What a network is, these kernels are told by tables: `UNIT` (a convolution or linear layer with what follows it, or a
pooling), `BUFFER` (a feature map) and taps (the kept weights).
"""

from __future__ import annotations

import numba
import numpy as np

#: A feature map: where it starts (times the batch size) among all of them and among the scratch maps, and its shape.
BUFFER = np.dtype([(name, np.int64) for name in ("start", "scratch", "channels", "height", "width", "padding")])

#: One layer and what follows it. `source`, `target` and `added` (a shortcut, or -1) are buffers; `taps_out`, `taps_in`
#: the positions of its channels among the starts of the taps; `scale`, `shift` positions among the parameters, `mean`
#: and `variance` among the batch-norm statistics (`scale` is -1 without batch norm); `fills_source` and `fills_added`
#: say that it is the first to write that gradient; `reads_images` that nobody wants the gradient of its source.
UNIT = np.dtype(
    [
        (name, np.int64)
        for name in (
            "pooling", "source", "target", "added", "stride", "taps_out", "taps_in", "scale", "shift", "mean",
            "variance", "rectified", "fills_source", "fills_added", "reads_images",
        )
    ]
)  # fmt: skip

#: Those of `torch.nn.BatchNorm2d`.
EPSILON = np.float32(1e-5)
MOMENTUM = np.float32(0.1)


_SETTINGS = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy", "nogil": True}

_entry = numba.njit(cache=True, **_SETTINGS)

#: Inlined by force: a part left as a call may be linked to another compilation of it, which rounds differently.
_part = numba.njit(forceinline=True, **_SETTINGS)


@_part
def _map(flat, start, buffer, examples):
    rows = buffer.height + 2 * buffer.padding
    run = (buffer.width + 2 * buffer.padding) * examples
    first = start * examples
    return flat[first : first + buffer.channels * rows * run].reshape((buffer.channels, rows, run))


@_part
def _inside(feature_map, buffer, channel, row, examples):
    """View one row of a channel without its border."""
    edge = buffer.padding * examples
    return feature_map[channel, row + buffer.padding, edge : edge + buffer.width * examples]


@_part
def _run(feature_map, buffer, channel, row, column, run, examples):
    """View one run of one row of a channel."""
    first = buffer.padding * examples + column * run
    return feature_map[channel, row + buffer.padding, first : first + run]


@_part
def _convolve(x, values, taps, first, last, out, buffer, channel, stride, columns, run, step, examples, fills):
    """Add up, for every row of one channel, the rows of `x` that its kept weights read; four weights at a time.

    Args:
        x: Feature map that is read.
        values: Parameters.
        taps: Kept weights.
        first: First tap of the channel.
        last: Behind its last tap.
        out: Feature map that is written.
        buffer: Its shape.
        channel: The channel.
        stride: Rows of `x` between one row and the next.
        columns: Number of runs in a row.
        run: Length of a run; runs follow each other in `out`.
        step: Distance of the runs in `x`.
        examples: Batch size.
        fills: Whether `out` is overwritten or added to.
    """
    for row in range(buffer.height):
        for column in range(columns):
            target = _run(out, buffer, channel, row, column, run, examples)
            if fills:
                target[:] = 0
            shift, tap = column * step, first
            while tap + 4 <= last:
                a, b, c, d = taps[tap], taps[tap + 1], taps[tap + 2], taps[tap + 3]
                ka, kb, kc, kd = a[3] + shift, b[3] + shift, c[3] + shift, d[3] + shift
                va, vb, vc, vd = values[a[0]], values[b[0]], values[c[0]], values[d[0]]
                xa = x[a[1], stride * row + a[2], ka : ka + run]
                xb = x[b[1], stride * row + b[2], kb : kb + run]
                xc = x[c[1], stride * row + c[2], kc : kc + run]
                xd = x[d[1], stride * row + d[2], kd : kd + run]
                for i in range(run):
                    target[i] += (va * xa[i] + vb * xb[i]) + (vc * xc[i] + vd * xd[i])
                tap += 4
            while tap < last:
                a = taps[tap]
                va, ka = values[a[0]], a[3] + shift
                xa = x[a[1], stride * row + a[2], ka : ka + run]
                for i in range(run):
                    target[i] += va * xa[i]
                tap += 1


@_part
def _scatter(slope, values, taps, first, last, source_slope, buffer, channel, stride, examples):
    """Add what every output of one channel of a strided convolution asks of its inputs: `_convolve` transposed."""
    for row in range(buffer.height):
        for tap in range(first, last):
            value, source, up, left = values[taps[tap, 0]], taps[tap, 1], taps[tap, 2], taps[tap, 3]
            for column in range(buffer.width):
                there = left + column * stride * examples
                x = source_slope[source, stride * row + up, there : there + examples]
                s = _run(slope, buffer, channel, row, column, examples, examples)
                for i in range(examples):
                    x[i] += value * s[i]


@_part
def _weight_gradients(x, slope, taps, first, last, gradients, buffer, channel, stride, columns, run, step, examples):
    """Multiply, for every kept weight of one channel, the rows it reads with the slopes of the rows it feeds."""
    for tap in range(first, last):
        gradients[taps[tap, 0]] = 0
    for row in range(buffer.height):
        for column in range(columns):
            s = _run(slope, buffer, channel, row, column, run, examples)
            shift, tap = column * step, first
            while tap + 4 <= last:
                a, b, c, d = taps[tap], taps[tap + 1], taps[tap + 2], taps[tap + 3]
                ka, kb, kc, kd = a[3] + shift, b[3] + shift, c[3] + shift, d[3] + shift
                xa = x[a[1], stride * row + a[2], ka : ka + run]
                xb = x[b[1], stride * row + b[2], kb : kb + run]
                xc = x[c[1], stride * row + c[2], kc : kc + run]
                xd = x[d[1], stride * row + d[2], kd : kd + run]
                sa, sb, sc, sd = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                for i in range(run):
                    sa += s[i] * xa[i]
                    sb += s[i] * xb[i]
                    sc += s[i] * xc[i]
                    sd += s[i] * xd[i]
                gradients[a[0]] += sa
                gradients[b[0]] += sb
                gradients[c[0]] += sc
                gradients[d[0]] += sd
                tap += 4
            while tap < last:
                a = taps[tap]
                ka = a[3] + shift
                xa = x[a[1], stride * row + a[2], ka : ka + run]
                sa = np.float32(0)
                for i in range(run):
                    sa += s[i] * xa[i]
                gradients[a[0]] += sa
                tap += 1


@_part
def _finish(total, added, out, buffer, channel, examples, scale, shift, rectified, shortcut):
    """Scale, shift, add the shortcut and rectify one channel."""
    least = np.float32(0) if rectified else np.float32(-np.inf)
    for row in range(buffer.height):
        t, y = _inside(total, buffer, channel, row, examples), _inside(out, buffer, channel, row, examples)
        if shortcut:
            a = _inside(added, buffer, channel, row, examples)
            for i in range(len(t)):
                value = t[i] * scale + shift + a[i]
                y[i] = least if value < least else value
        else:
            for i in range(len(t)):
                value = t[i] * scale + shift
                y[i] = least if value < least else value


@_part
def _statistics(total, buffer, channel, examples):
    """Give the mean and the variance (over all, not unbiased) of one channel."""
    count, whole = buffer.height * buffer.width * examples, 0.0
    for row in range(buffer.height):
        t, part = _inside(total, buffer, channel, row, examples), np.float32(0)
        for i in range(len(t)):
            part += t[i]
        whole += part
    mean = np.float32(whole / count)
    whole = 0.0
    for row in range(buffer.height):
        t, part = _inside(total, buffer, channel, row, examples), np.float32(0)
        for i in range(len(t)):
            part += (t[i] - mean) * (t[i] - mean)
        whole += part
    return mean, np.float32(whole / count)


@_part
def _pool(x, source, y, examples):
    share = np.float32(1 / (source.height * source.width))
    for channel in range(source.channels):
        out = y[channel, 0]
        out[:] = 0
        for row in range(source.height):
            values = _inside(x, source, channel, row, examples)
            for column in range(source.width):
                for i in range(examples):
                    out[i] += values[column * examples + i]
        for i in range(examples):
            out[i] *= share


@_part
def _unpool(slope, source, source_slope, examples):
    share = np.float32(1 / (source.height * source.width))
    for channel in range(source.channels):
        for row in range(source.height):
            out = _inside(source_slope, source, channel, row, examples)
            for column in range(source.width):
                for i in range(examples):
                    out[column * examples + i] = slope[channel, 0, i] * share


@_part
def _runs(unit, source, target, examples):
    """Give the runs of a row: how many, how long, and how far apart in the source."""
    if unit.stride == 1:
        return 1, target.width * examples, 0
    return target.width, examples, unit.stride * examples


@_entry
def forward(network, parameters, statistics, work, examples, training):
    """Compute all feature maps of a batch whose images lie in the first one.

    Args:
        network: Units, buffers, then taps and starts by output channel and by input channel.
        parameters: All parameters, `[parameters]`.
        statistics: Running batch-norm statistics; updated when training.
        work: Feature maps, their gradients, sums before the normalisation, scratch maps, batch statistics.
        examples: Batch size.
        training: Normalise by the batch (True) or by the running statistics.
    """
    units, buffers, taps, starts = network[:4]
    maps, totals, batch = work[0], work[2], work[4]
    for index in range(len(units)):
        unit = units[index]
        source, target = buffers[unit.source], buffers[unit.target]
        x, y = _map(maps, source.start, source, examples), _map(maps, target.start, target, examples)
        if unit.pooling:
            _pool(x, source, y, examples)
            continue
        total = _map(totals, target.start, target, examples)
        shortcut = unit.added >= 0
        added = _map(maps, buffers[max(unit.added, 0)].start, target, examples) if shortcut else total
        columns, run, step = _runs(unit, source, target, examples)
        count = target.height * target.width * examples
        for channel in range(target.channels):
            first, last = starts[unit.taps_out + channel], starts[unit.taps_out + channel + 1]
            _convolve(
                x, parameters, taps, first, last, total, target, channel, unit.stride, columns, run, step, examples,
                True,
            )  # fmt: skip
            scale, shift = np.float32(1), parameters[unit.shift + channel]
            if unit.scale >= 0:
                mean, variance = statistics[unit.mean + channel], statistics[unit.variance + channel]
                if training:
                    mean, variance = _statistics(total, target, channel, examples)
                    unbiased = variance * np.float32(count / max(count - 1, 1))
                    statistics[unit.mean + channel] += MOMENTUM * (mean - statistics[unit.mean + channel])
                    statistics[unit.variance + channel] += MOMENTUM * (unbiased - statistics[unit.variance + channel])
                spread = np.float32(1) / np.sqrt(variance + EPSILON)
                batch[unit.mean + channel], batch[unit.variance + channel] = mean, spread
                scale = parameters[unit.scale + channel] * spread
                shift -= mean * scale
            _finish(total, added, y, target, channel, examples, scale, shift, unit.rectified, shortcut)


@_part
def _loss(logits, slope, labels):
    """Give the mean cross-entropy of a batch and write its slope in the logits."""
    classes, examples = logits.shape
    total = 0.0
    for i in range(examples):
        largest = logits[0, i]
        for k in range(1, classes):
            largest = max(largest, logits[k, i])
        norm = np.float32(0)
        for k in range(classes):
            slope[k, i] = np.exp(logits[k, i] - largest)
            norm += slope[k, i]
        total += np.log(norm) - (logits[labels[i], i] - largest)
        for k in range(classes):
            slope[k, i] /= norm * np.float32(examples)
        slope[labels[i], i] -= np.float32(1) / np.float32(examples)
    return total / examples


@_part
def _back_through_activation(unit, buffer, channel, examples, slope, out, total, added_slope, mean):
    """Take the slope of one channel back through rectifier and shortcut; sum it, and sum it times `total - mean`."""
    zero = np.float32(0)
    plain, weighted = 0.0, 0.0
    for row in range(buffer.height):
        s, y = _inside(slope, buffer, channel, row, examples), _inside(out, buffer, channel, row, examples)
        t, a = _inside(total, buffer, channel, row, examples), _inside(added_slope, buffer, channel, row, examples)
        if unit.rectified:
            for i in range(len(s)):
                s[i] = s[i] if y[i] > zero else zero
        if unit.added >= 0:
            if unit.fills_added:
                a[:] = s
            else:
                for i in range(len(s)):
                    a[i] += s[i]
        first, second = np.float32(0), np.float32(0)
        for i in range(len(s)):
            first += s[i]
            second += s[i] * (t[i] - mean)
        plain += first
        weighted += second
    return np.float32(plain), np.float32(weighted)


@_part
def _back_through_norm(slope, total, scratch, buffer, channel, examples, by_slope, by_total, mean, constant):
    for row in range(buffer.height):
        s, t = _inside(slope, buffer, channel, row, examples), _inside(total, buffer, channel, row, examples)
        out = _inside(scratch, buffer, channel, row, examples)
        for i in range(len(s)):
            out[i] = by_slope * s[i] + by_total * (t[i] - mean) + constant


@_entry
def backward(network, parameters, gradients, work, labels):
    """Compute the gradients of all kept weights and other parameters for the batch that went forward; give the loss."""
    units, buffers, taps, starts, taps_in, starts_in = network
    maps, slopes, totals, scratches, batch = work
    examples = len(labels)
    last = buffers[units[len(units) - 1].target]
    logits, slope = _map(maps, last.start, last, examples), _map(slopes, last.start, last, examples)
    loss = _loss(logits[:, 0], slope[:, 0], labels)
    for index in range(len(units) - 1, -1, -1):
        unit = units[index]
        source, target = buffers[unit.source], buffers[unit.target]
        slope = _map(slopes, target.start, target, examples)
        source_slope = _map(slopes, source.start, source, examples)
        if unit.pooling:
            _unpool(slope, source, source_slope, examples)
            continue
        x, y = _map(maps, source.start, source, examples), _map(maps, target.start, target, examples)
        total, scratch = _map(totals, target.start, target, examples), _map(scratches, target.scratch, target, examples)
        added = _map(slopes, buffers[max(unit.added, 0)].start, target, examples) if unit.added >= 0 else slope
        columns, run, step = _runs(unit, source, target, examples)
        strided = unit.stride > 1 and not unit.reads_images
        if strided and unit.fills_source:
            source_slope[:] = 0
        count = np.float32(target.height * target.width * examples)
        for channel in range(target.channels):
            by_slope, by_total, constant, mean = np.float32(1), np.float32(0), np.float32(0), np.float32(0)
            if unit.scale >= 0:
                mean, spread = batch[unit.mean + channel], batch[unit.variance + channel]
                plain, weighted = _back_through_activation(
                    unit, target, channel, examples, slope, y, total, added, mean
                )
                gradients[unit.scale + channel], gradients[unit.shift + channel] = weighted * spread, plain
                by_slope = parameters[unit.scale + channel] * spread
                by_total = -by_slope * spread * spread * weighted / count
                constant = -by_slope * plain / count
            else:
                plain, _ = _back_through_activation(unit, target, channel, examples, slope, y, total, added, mean)
                gradients[unit.shift + channel] = plain
            _back_through_norm(slope, total, scratch, target, channel, examples, by_slope, by_total, mean, constant)
            first, last = starts[unit.taps_out + channel], starts[unit.taps_out + channel + 1]
            _weight_gradients(
                x, scratch, taps, first, last, gradients, target, channel, unit.stride, columns, run, step, examples
            )
            if strided:
                _scatter(scratch, parameters, taps, first, last, source_slope, target, channel, unit.stride, examples)
        if unit.stride > 1 or unit.reads_images:
            continue
        run = source.width * examples
        for channel in range(source.channels):
            first, last = starts_in[unit.taps_in + channel], starts_in[unit.taps_in + channel + 1]
            _convolve(
                scratch, parameters, taps_in, first, last, source_slope, source, channel, 1, 1, run, 0, examples,
                unit.fills_source,
            )  # fmt: skip
    return loss


@_entry
def descend(parameters, gradients, velocity, learning_rate, momentum, decay):
    """Take one step of SGD with momentum and weight decay, as `torch.optim.SGD` does."""
    for i in range(len(parameters)):
        slope = gradients[i] + decay * parameters[i]
        velocity[i] = momentum * velocity[i] + slope
        parameters[i] -= learning_rate * velocity[i]


@_entry
def load(images, flat, buffer, examples):
    """Write images `[examples, channels, height, width]` into a feature map."""
    out = _map(flat, buffer.start, buffer, examples)
    for channel in range(buffer.channels):
        for row in range(buffer.height):
            there = _inside(out, buffer, channel, row, examples)
            for column in range(buffer.width):
                for i in range(examples):
                    there[column * examples + i] = images[i, channel, row, column]
