"""Modulated deformable convolution, DCNv2 (Zhu et al. 2019): conv2d whose taps look where they are told to.

    y[b, i, j, o] = bias[o] + sum over t, c of mask[b, i, j, t] * x[b, row, column, c] * weight[o, c, u, v]
    row    = S*i - P + D*u + offset[b, i, j, 2t]
    column = S*j - P + D*v + offset[b, i, j, 2t + 1]          tap t = KW*u + v

x (B, H, W, C), offset (B, OH, OW, 2*KH*KW), mask (B, OH, OW, KH*KW), weight (O, C, KH, KW), bias (O,) ->
y (B, OH, OW, O), OH as in conv2d; offset 0 and mask 1 make it conv2d. Between its pixels x is bilinear: at a distance
(down, right) from the upper left one, the four neighbours have the shares

    (1-down)(1-right)   (1-down) right
       down (1-right)      down  right

Neighbours outside of the map are zero, and a point with row <= -1, row >= H, column <= -1 or column >= W has none.
tutorials/pictures/sampling-points.png shows where nine taps look; draw.draw_sampling_points draws it of any layer.

Backward, with dcolumns[t, c] = sum over o of dy[o] * weight[o, c, t]: the gradients of offset and mask need only the
agreement of each neighbour with it, the sum over c of neighbour[c] * dcolumns[t, c]: dmask interpolates the four
numbers, doffset is their differences times mask. Each neighbour's dx gets its share of mask * dcolumns.

`reference_*` is the definition, on whole arrays. The fast forms do the same strip by strip: gather the neighbours'
rows of C numbers, a few points at a time, so that they stay in the cache, weigh them by small matrix products, and
multiply all of a strip's columns by the weight at once.
"""

from __future__ import annotations

import itertools
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from ..autograd import differentiable
from ..backend import Array, beside, get_xp
from ..strips import PLANS, WORTH_SHARING, cut
from ..threads import parallel_for
from . import deform_conv2d_cuda
from .geometry import Geometry
from .precisions import check_precision
from .reduce import channel_sum

STRIP_BYTES = 1 << 20  # columns of one strip
GATHERED_BYTES = 1 << 18  # neighbours gathered at a time, out of which a strip's columns are made
SMALL_MATRIX = 1 << 16  # numbers, of points times pixels, to which a matrix of zeros is quicker than to sort
PARTS = 8  # partial sums of gradients, a fixed number so that the bits do not depend on the threads


@differentiable
def deform_conv2d(x, offset, mask, weight, bias=None, *, stride=1, padding=0, dilation=1, precision="float32"):
    """Return the deformable convolution of x (B, H, W, C) with weight (O, C, KH, KW), plus bias (O,) or None.

    offset (B, OH, OW, 2*KH*KW): (rows, columns) that each tap is moved by, in pixels of x, tap by tap.  mask
    (B, OH, OW, KH*KW): factor of each tap; the released networks give a sigmoid.  stride, padding, dilation: an
    integer or (rows, columns).  precision: on a GPU, of the product with the weight, see conv2d_cuda; y is stored as x.
    Raises ValueError when shapes or dtypes do not fit, InputError for a precision that the device does not have.
    Source: Zhu et al. 2019, and the released code for the border.
    """
    geometry = Geometry.of(stride, padding, dilation, groups=1)
    check_precision(x, weight, precision)
    _check(x.shape, offset.shape, mask.shape, weight.shape, None if bias is None else bias.shape, geometry)
    if not x.dtype == offset.dtype == mask.dtype:
        raise ValueError(f"deform_conv2d needs one dtype, got x {x.dtype}, offset {offset.dtype}, mask {mask.dtype}")
    if get_xp(x, offset, mask, weight) is np:
        forth, back = forward, gradients
    else:
        forth = partial(deform_conv2d_cuda.forward, precision=precision)
        back = partial(deform_conv2d_cuda.gradients, precision=precision)
    y = forth(x, offset, mask, weight, geometry)
    if bias is not None:
        y += bias.astype(y.dtype)

    def backward(dy):
        found = back(x, offset, mask, weight, dy, geometry)
        return *found, None if bias is None else channel_sum(dy)

    return y, backward


@lru_cache(PLANS)  # what fits once does so the next time
def _check(x: tuple, offset: tuple, mask: tuple, weight: tuple, bias: tuple | None, geometry: Geometry) -> None:
    if len(x) != 4 or len(weight) != 4 or x[3] != weight[1]:
        raise ValueError(f"deform_conv2d needs x (B, H, W, C) and weight (O, C, KH, KW), got {x}, {weight}")
    size = geometry.output_size(*x[1:3], weight[2:])
    if min(size) < 1:
        raise ValueError(
            f"the kernel {weight[2:]} with dilation {geometry.dilation} is larger than the padded map:"
            f" {x[1:3]} with padding {geometry.padding}"
        )
    taps = weight[2] * weight[3]
    for name, shape, channels in (("offset", offset, 2 * taps), ("mask", mask, taps)):
        if shape != (x[0], *size, channels):
            raise ValueError(f"{name} has shape {shape}, expected {(x[0], *size, channels)}")
    if bias is not None and bias != (weight[0],):
        raise ValueError(f"bias has shape {bias}, expected ({weight[0]},)")


# --- where the taps look ---------------------------------------------------------------------------------------------


def sample_positions(offset: Array, kernel: tuple[int, int], geometry: Geometry, first_row: int = 0) -> Array:
    """Return the row and the column in x, (2, B, OH, OW, KH*KW), that every tap of every output looks at.

    first_row: the output row with which `offset` begins.
    """
    xp, grid = get_xp(offset), _grid(offset.shape[1:3], tuple(kernel), geometry, first_row, offset.dtype)
    position = xp.empty((2, *offset.shape[:3], offset.shape[3] // 2), offset.dtype)
    for axis in range(2):
        xp.add(beside(offset, grid[axis]), offset[..., axis::2], out=position[axis])
    return position


@lru_cache(PLANS)
def _grid(
    size: tuple[int, int], kernel: tuple[int, int], geometry: Geometry, first_row: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (OH, 1, KH*KW) and the columns (OW, KH*KW) that the taps look at where no offset moves them."""
    (stride_y, stride_x), (pad_y, pad_x), (step_y, step_x), _ = geometry
    u, v = np.divmod(np.arange(kernel[0] * kernel[1]), kernel[1])
    rows = stride_y * (first_row + np.arange(size[0]))[:, None, None] - pad_y + step_y * u
    columns = stride_x * np.arange(size[1])[:, None] - pad_x + step_x * v
    return rows.astype(dtype), columns.astype(dtype)


class Neighbours(NamedTuple):
    """The four pixels around each point, (B, OH, OW, KH*KW) each, in a map that was given a border of one zero pixel.

    top, left: index of the upper left one.  down, right: the point's distances to it, 0..1.  inside: whether the
    point has neighbours.  (One that has none is drawn to the border and sees zeros.)
    """

    top: Array
    left: Array
    down: Array
    right: Array
    inside: Array

    @classmethod
    def of(cls, position: Array, height: int, width: int) -> Neighbours:
        """position (2, B, OH, OW, KH*KW): rows and columns."""
        xp = get_xp(position)
        size = xp.array([height, width], position.dtype).reshape(2, 1, 1, 1, 1)
        inside = (position > -1) & (position < size)
        position = position.clip(-1, size)
        before = xp.floor(xp.fmin(position, size - 1))  # fmin: a NaN has an index, and stays NaN in the distance
        return cls(*(before.astype(np.intp) + 1), *(position - before), inside[0] & inside[1])

    def shares(self) -> Array:
        """Return (..., KH*KW, 4): upper left, upper right, lower left, lower right."""
        xp, down, right, up, left = get_xp(self.down), self.down, self.right, 1 - self.down, 1 - self.right
        shares = xp.empty((*down.shape, 4), down.dtype)
        for k, (vertical, horizontal) in enumerate(((up, left), (up, right), (down, left), (down, right))):
            xp.multiply(vertical, horizontal, out=shares[..., k])
        return shares

    def gradients(self, agreement: Array, mask: Array) -> tuple[Array, Array]:
        """Return doffset (..., 2*KH*KW) and dmask from each neighbour's agreement (..., KH*KW, 4) with dcolumns."""
        xp, down, right, up, left = get_xp(mask), self.down, self.right, 1 - self.down, 1 - self.right
        upper_left, upper_right, lower_left, lower_right = (agreement[..., k] for k in range(4))
        upper = left * upper_left + right * upper_right
        lower = left * lower_left + right * lower_right
        across = up * (upper_right - upper_left) + down * (lower_right - lower_left)
        doffset, inside = xp.empty((*mask.shape[:-1], 2 * mask.shape[-1]), mask.dtype), self.inside * mask
        xp.multiply(lower - upper, inside, out=doffset[..., 0::2])
        xp.multiply(across, inside, out=doffset[..., 1::2])
        return doffset, up * upper + down * lower


def _bordered(x: Array) -> Array:
    return cut(x, -1, -1, x.shape[1] + 2, x.shape[2] + 2)


def _matrix(weight: Array) -> Array:
    """Return weight (O, C, KH, KW) as (KH*KW*C, O)."""
    return get_xp(weight).ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, len(weight))


# --- the definition --------------------------------------------------------------------------------------------------


def _gather(x: Array, offset: Array, kernel: tuple[int, int], geometry: Geometry):
    """Return the Neighbours, the index of all four in bordered x, and their values (B, OH, OW, KH*KW, 4, C)."""
    xp = get_xp(x)
    near = Neighbours.of(sample_positions(offset, kernel, geometry), *x.shape[1:3])
    image = xp.arange(len(x)).reshape(-1, 1, 1, 1, 1)
    index = image, near.top[..., None] + xp.array([0, 0, 1, 1]), near.left[..., None] + xp.array([0, 1, 0, 1])
    return near, index, _bordered(x)[index]


def reference_forward(x: Array, offset: Array, mask: Array, weight: Array, geometry: Geometry) -> Array:
    """Return y (B, OH, OW, O): the formula of the module."""
    near, _, values = _gather(x, offset, weight.shape[2:], geometry)
    columns = mask[..., None] * (near.shares()[..., None] * values).sum(-2)  # (B, OH, OW, KH*KW, C)
    matrix = _matrix(weight)
    return columns.reshape(*columns.shape[:3], len(matrix)) @ matrix


def reference_gradients(
    x: Array, offset: Array, mask: Array, weight: Array, dy: Array, geometry: Geometry
) -> tuple[Array, Array, Array, Array]:
    """Return dx, doffset, dmask, dweight."""
    xp, (outputs, channels, *kernel) = get_xp(x), weight.shape
    near, index, values = _gather(x, offset, kernel, geometry)
    shares = mask[..., None] * near.shares()
    columns = (shares[..., None] * values).sum(-2)  # (B, OH, OW, KH*KW, C)
    matrix = _matrix(weight)
    dcolumns = (dy @ matrix.T).reshape(columns.shape)

    dweight = columns.reshape(-1, len(matrix)).T @ dy.reshape(-1, outputs)  # (KH*KW*C, O)
    dweight = dweight.reshape(*kernel, channels, outputs).transpose(3, 2, 0, 1)
    doffset, dmask = near.gradients((values * dcolumns[..., None, :]).sum(-1), mask)
    dx = xp.zeros_like(_bordered(x))
    xp.add.at(dx, index, shares[..., None] * dcolumns[..., None, :])  # several points may have one neighbour
    return dx[:, 1:-1, 1:-1], doffset, dmask, dweight


# --- the same in strips ----------------------------------------------------------------------------------------------


def _strip_size(mask: np.ndarray, channels: int) -> tuple[int, int]:
    """Return how many images, and how many output rows of each, make a strip: several small images, or a part of one.

    All images at once where they hardly fill it, and else no more than leave PARTS strips for the threads to share.
    """
    (batch, height, width, taps), pixel_bytes = mask.shape, channels * mask.itemsize
    rows = max(1, STRIP_BYTES // (width * taps * pixel_bytes))
    if batch * height <= WORTH_SHARING * rows:
        return max(1, batch), height
    return max(1, min(rows // height, -(-batch // PARTS))), min(rows, height)


def _look_around(size, offset, mask, kernel, geometry, first_row):
    """Return where the n = images * rows * OW * KH*KW points of a strip lie.

    size: (H + 2, W + 2) of a bordered image; offset, mask (images, rows, OW, ...).  near: the Neighbours;
    corner (n,): the upper left one's index in the strip's images' pixels;  shares (n, 4), the mask's factor included.
    """
    height, width = size
    near = Neighbours.of(sample_positions(offset, kernel, geometry, first_row), height - 2, width - 2)
    corner = near.top * width + near.left
    if len(offset) > 1:
        corner += height * width * np.arange(len(offset)).reshape(-1, 1, 1, 1)
    return near, corner.ravel(), (near.shares() * mask[..., None]).reshape(-1, 4)


def _gather_in_parts(images: np.ndarray, corner: np.ndarray):
    """Yield (points, values), slices of the n points and what is in their neighbours, (points, 4, C), in one buffer."""
    *_, width, channels = images.shape
    pixels, four = images.reshape(-1, channels), _four(width)
    size = max(1, GATHERED_BYTES // (4 * channels * images.itemsize))
    buffer = np.empty((min(size, len(corner)), 4, channels), images.dtype)
    for first in range(0, len(corner), size):
        points = slice(first, min(first + size, len(corner)))
        values = buffer[: points.stop - first]
        pixels.take(corner[points, None] + four, axis=0, out=values, mode="clip")  # "raise" needs a second buffer
        yield points, values


@lru_cache
def _four(width: int) -> np.ndarray:
    """Return the indices of four neighbours, relative to the first, in an image `width` pixels wide."""
    return np.array([0, 1, width, width + 1])


def forward(x: np.ndarray, offset: np.ndarray, mask: np.ndarray, weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return y (B, OH, OW, O)."""
    images, matrix, kernel = _bordered(x), _matrix(weight), weight.shape[2:]
    together, rows = _strip_size(mask, x.shape[3])
    y = np.empty((*mask.shape[:3], len(weight)), x.dtype)

    def strip(job: tuple[int, int]) -> None:
        b, first = job
        part = np.s_[b : b + together, first : first + rows]
        _, corner, shares = _look_around(images.shape[1:3], offset[part], mask[part], kernel, geometry, first)
        columns = np.empty((len(corner), 1, x.shape[3]), x.dtype)
        for points, values in _gather_in_parts(images[b : b + together], corner):
            np.matmul(shares[points, None], values, out=columns[points])
        np.matmul(columns.reshape(-1, len(matrix)), matrix, out=y[part].reshape(-1, len(weight)))

    parallel_for(strip, itertools.product(range(0, len(x), together), range(0, y.shape[1], rows)))
    return y


def gradients(
    x: np.ndarray, offset: np.ndarray, mask: np.ndarray, weight: np.ndarray, dy: np.ndarray, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return dx, doffset, dmask, dweight; columns are sampled again, to keep them would cost 9 times x for 3x3 taps.

    An image's strips are split among `splits` partial sums of dx, all strips among `parts` partial sums of dweight.
    """
    (batch, _, width, channels), (outputs, _, *kernel) = x.shape, weight.shape
    images, matrix, (together, rows) = _bordered(x), _matrix(weight), _strip_size(mask, channels)
    splits = min(-(-PARTS // max(batch, 1)), -(-mask.shape[1] // rows))
    split_images = list(itertools.product(range(0, batch, together), range(splits)))
    parts = min(PARTS, len(split_images))
    dx, dweight = np.zeros((splits, *images.shape), x.dtype), np.zeros((parts, *matrix.shape), x.dtype)
    doffset, dmask = np.empty(offset.shape, x.dtype), np.empty(mask.shape, x.dtype)

    def strip(b: int, first: int, dx: np.ndarray, dweight: np.ndarray) -> None:
        part = np.s_[b : b + together, first : first + rows]
        near, corner, shares = _look_around(images.shape[1:3], offset[part], mask[part], kernel, geometry, first)
        dy_rows = dy[part].reshape(-1, outputs)
        dcolumns = (dy_rows @ matrix.T).reshape(-1, channels)  # (n, C)
        columns, agreement = np.empty((len(corner), 1, channels), x.dtype), np.empty((len(corner), 4, 1), x.dtype)
        for points, values in _gather_in_parts(images[b : b + together], corner):
            np.matmul(shares[points, None], values, out=columns[points])
            np.matmul(values, dcolumns[points, :, None], out=agreement[points])
        dweight += columns.reshape(-1, len(matrix)).T @ dy_rows
        doffset[part], dmask[part] = near.gradients(agreement.reshape(*near.down.shape, 4), mask[part])
        _scatter(dx.reshape(-1, channels), corner, shares, dcolumns, _four(width + 2))

    def sum_part(i: int) -> None:
        for b, split in split_images[i::parts]:
            for first in range(split * rows, mask.shape[1], splits * rows):
                strip(b, first, dx[split, b : b + together], dweight[i])

    parallel_for(sum_part, range(parts))
    dweight = dweight.sum(0).reshape(*kernel, channels, outputs).transpose(3, 2, 0, 1)
    return dx[:, :, 1:-1, 1:-1].sum(0), doffset, dmask, dweight


def _scatter(dx: np.ndarray, corner: np.ndarray, shares: np.ndarray, dcolumns: np.ndarray, four: np.ndarray) -> None:
    """Add shares[i, k] * dcolumns[i] to dx[corner[i] + four[k]], in a fixed order, faster than np.add.at.

    dx (pixels, C), corner (n,), shares (n, 4), dcolumns (n, C).  On small maps by one product with the matrix of all
    shares, mostly zeros. On others the points are sorted by corner. Corners with equally many points are taken
    together, each a product of small matrices; they differ, so that += meets no pixel twice.
    """
    if len(corner) * len(dx) <= SMALL_MATRIX:
        matrix = np.zeros((len(corner), len(dx)), dx.dtype)
        matrix[np.arange(len(corner))[:, None], corner[:, None] + four] = shares
        dx += matrix.T @ dcolumns
        return
    order = np.argsort(corner, kind="stable")
    corner, changes = corner[order], np.ones(len(corner) + 1, bool)
    np.not_equal(corner[1:], corner[:-1], out=changes[1:-1])
    bounds = np.flatnonzero(changes)  # where in the order each corner begins, and the end
    first, count = bounds[:-1], bounds[1:] - bounds[:-1]
    for times in np.flatnonzero(np.bincount(count)):
        begin = first[count == times]
        points = order[begin[:, None] + np.arange(times)]  # (corners, times)
        sums = shares.take(points, axis=0).swapaxes(1, 2) @ dcolumns.take(points, axis=0)  # (corners, 4, C)
        for k in range(4):
            dx[corner[begin] + four[k]] += sums[:, k]
