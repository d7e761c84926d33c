"""Winograd's convolution (Lavin and Gray 2016): TILE x TILE outputs of an r x r kernel g from a tile d of their inputs,

    y = A^T ((G g G^T) * (B^T d B)) A          (TILE + r - 1)^2 products instead of TILE^2 r^2

for all tiles of a strip at once: each of the (TILE + r - 1)^2 frequencies is a matrix product over the channels. The
weight gradient is the same the other way round,  dg = G^T (sum over tiles of (A dy A^T) * (B^T d B)) G.  A kernel of
stride 2 works on pixels of 2 x 2 (`fold` = 2), which makes 4x4 a 2x2. Used by conv2d.py, which says what is correlated.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np

from ..memory import empty
from ..strips import Strip, cut, room, run, strided, strips
from ..threads import parallel_for
from .geometry import Correlation, Window
from .rectify import Finish, finished

TILE = 4  # outputs of a tile, along each side
COLUMNS = 1 << 14  # of a transform's product: as wide as OpenBLAS's small products stay fast
STRIP_NUMBERS = 1 << 14  # tiles times channels of a strip, which fit a cache
STRIP_TILES = 128  # of a strip at least: the products of fewer would take long to pack a kernel of many channels
WEIGHT_BYTES = 1 << 25  # transformed tiles kept at a time for a weight gradient
LARGE_KERNEL = 1 << 20  # numbers of a transformed kernel that two threads share, half the outputs each
BLOCK = 1 << 14  # pairs of channels whose taps are transformed at a time


@functools.cache
def cook_toom(taps: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A (a, TILE), G (a, taps), B (a, a), a = TILE + taps - 1, with which correlating d (a,) and g (taps,) is

        y[i] = sum over k of d[i + k] g[k] = (A^T ((G g) * (B^T d)))[i]

    (Toom-Cook: polynomials are multiplied by their values at a - 1 points and at infinity. These points round half as
    much as the usual 0, 1, -1, 2, -2.)
    """
    points = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)[: TILE + taps - 2]
    scales = [math.prod(p - q for q in points if q != p) for p in points]
    A = np.array([[p**i for i in range(TILE)] for p in points] + [[0] * (TILE - 1) + [1]], float)
    G = np.array(
        [[p**k / s for k in range(taps)] for p, s in zip(points, scales, strict=True)] + [[0] * (taps - 1) + [1]]
    )
    # B is then fixed by  sum over t of A[t, i] G[t, k] B[l, t] = (1 if l == i + k else 0)
    products = np.einsum("ti,tk->ikt", A, G).reshape(TILE * taps, -1)
    wanted = np.equal.outer(np.add.outer(np.arange(TILE), np.arange(taps)).ravel(), np.arange(TILE + taps - 1))
    B = np.linalg.lstsq(products, wanted.astype(float), rcond=None)[0].T
    return A.astype(dtype), G.astype(dtype), np.where(abs(B) < 1e-12, 0, B).astype(dtype)


@functools.cache
def kernel_transform(taps: int, dtype: np.dtype) -> np.ndarray:
    """Return the matrix (a * a, taps * taps) that takes a kernel's taps, in one row, to its frequencies, G g G^T."""
    G = cook_toom(taps, dtype)[1]
    return np.kron(G, G)


def jobs(
    x: np.ndarray, kernel: np.ndarray, plan: Correlation, fold: int, out: np.ndarray, finish: Finish | None
) -> list[Callable[[dict], None]]:
    """Return the jobs that write the plan's correlation of x (B, H, W, C) to out (B, OH, OW, O), strips of tiles.

    kernel: what transformed_weight returned for the plan.  The jobs are for strips.run.
    """
    channels, outputs = max(kernel.shape[1:]), out.shape[3]
    pieces = strips(tile_grid(out.shape), channels, max(STRIP_NUMBERS, STRIP_TILES * channels), at_least=2)
    halves = [slice(outputs)]
    if len(pieces) == 1 and kernel.size > LARGE_KERNEL:  # few tiles, yet many products
        halves = [slice(outputs // 2), slice(outputs // 2, outputs)]
    return [partial(_strip, x, kernel, plan, fold, finish, out, piece, half) for piece in pieces for half in halves]


def tile_grid(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how many images, rows of tiles and tiles in a row cover a map (B, H, W, ...)."""
    return shape[0], -(-shape[1] // TILE), -(-shape[2] // TILE)


def transformed_weight(weight: np.ndarray, plan: Correlation, fold: int) -> np.ndarray:
    """Return the plan's taps g transformed, G g G^T: (side*side, inputs, outputs)."""
    (outputs, channels, *taps), size = weight.shape, plan.windows[0].taps // fold
    rows, compact = weight.reshape(outputs * channels, -1), kernel_transform(size, weight.dtype)
    if fold > 1:  # tap fold*a + q of a pixel is tap a of the pixel's part q
        parts = weight.reshape(outputs, channels, size, fold, size, fold).transpose(0, 3, 5, 1, 2, 4)
        rows, transform = parts.reshape(-1, size * size), compact
    else:  # the transform takes the plan's taps out of all of the weight's, which saves a copy of the weight
        transform = np.zeros((len(compact), *taps), weight.dtype)
        plan.picked(transform)[...] = compact.reshape(-1, size, size)
        transform = transform.reshape(len(compact), -1)
    kernel, jobs = empty((len(transform), len(rows)), weight.dtype), range(0, len(rows), BLOCK)
    parallel_for(lambda i: np.matmul(transform, rows[i : i + BLOCK].T, out=kernel[:, i : i + BLOCK]), jobs)
    kernel = kernel.reshape(len(kernel), outputs, -1)
    return kernel if plan.adjoint else kernel.transpose(0, 2, 1)


def _strip(x, kernel, plan, fold: int, finish: Finish | None, out, piece: Strip, channels, scratch) -> None:
    """Transform the strip's tiles, multiply them by the kernel, and transform back. channels: which of the outputs."""
    A, _, B = cook_toom(plan.windows[0].taps // fold, x.dtype)
    tiles = _transformed_tiles(x, plan.windows, fold, B.T, piece, -(-out.shape[2] // TILE), scratch)
    _multiply(tiles, kernel[:, :, channels], A, finish, channels, out[..., channels], piece, scratch)


def _multiply(tiles, kernel, A, finish: Finish | None, channels, out, piece: Strip, scratch: dict) -> None:
    """Write the strip's transformed tiles, multiplied by the kernel and transformed back, to its place in out."""
    (frequencies, inputs, outputs), (images, first, last), count = kernel.shape, piece, tiles.shape[2]
    products = room(scratch, "other", (len(A), len(A), count, outputs), tiles.dtype)
    np.matmul(tiles.reshape(frequencies, count, inputs), kernel, out=products.reshape(frequencies, count, outputs))
    half = room(scratch, "tiles", (TILE, len(A), count * outputs), tiles.dtype)
    y = room(scratch, "other", (TILE, TILE, count * outputs), tiles.dtype)
    _two_sided(A.T, products.reshape(len(A), len(A), -1), half, y)
    finished(y.reshape(-1, outputs), finish, channels)
    _scatter_tiles(y, out[images, TILE * first : TILE * last])


def _two_sided(matrix: np.ndarray, tiles: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Write matrix @ tile @ matrix^T of each of n tiles (k, k, n) to out (l, l, n); half (l, k, n) is overwritten.

    out may begin where tiles do: a column of the one lies where it does in the other, and is read before.
    """
    for first in range(0, tiles.shape[2], COLUMNS):
        part = slice(first, first + COLUMNS)
        np.matmul(matrix, tiles[..., part].swapaxes(0, 1), out=half[..., part].swapaxes(0, 1))
        np.matmul(matrix, half[..., part], out=out[..., part])


def _transformed_tiles(maps, windows, fold: int, matrix, piece: Strip, across: int, scratch: dict, out=None):
    """Return the overlapping tiles of a strip, TILE pixels apart, transformed: (l, l, tiles, fold*fold*C).

    matrix (l, k), for tiles of k x k pixels; a pixel is a square of fold x fold of the maps' own.  piece: images, first
    and last row of tiles.  out: where to write them, scratch if None.
    """
    (images, first, last), (rows, side), step = piece, matrix.shape, fold * TILE
    top, left, more = windows[0].start + step * first, windows[1].start, fold * (side - TILE)
    seen = np.ascontiguousarray(cut(maps[images], top, left, step * (last - first) + more, step * across + more))
    image, row, column, channel = seen.strides
    shape = (side, side, len(seen), last - first, across, fold, fold, seen.shape[3])
    strides = (fold * row, fold * column, image, step * row, step * column, row, column, channel)
    tiles = room(scratch, "tiles", shape, maps.dtype)
    tiles[...] = strided(seen, shape, strides)
    columns = math.prod(shape[2:])
    half = room(scratch, "other", (rows, side, columns), maps.dtype)
    whole = (rows, rows, math.prod(shape[2:5]), math.prod(shape[5:]))
    out = room(scratch, "tiles", whole, maps.dtype) if out is None else out
    _two_sided(matrix, tiles.reshape(side, side, columns), half, out.reshape(rows, rows, columns))
    return out


def _scatter_tiles(y: np.ndarray, target: np.ndarray) -> None:
    """Write tiles y (TILE, TILE, tiles * O) side by side to target (B, rows, W, O), whose last tiles may be cut off."""
    batch, rows, width, outputs = target.shape
    down, across = -(-rows // TILE), -(-width // TILE)
    y = y.reshape(TILE, TILE, batch, down, across, outputs)
    if rows == TILE * down and width == TILE * across:
        tiles = target.reshape(batch, down, TILE, across, TILE, outputs)  # a view, whatever the strides
        tiles.transpose(2, 4, 0, 1, 3, 5)[...] = y
    else:
        y = y.transpose(2, 3, 0, 4, 1, 5).reshape(batch, TILE * down, TILE * across, outputs)
        target[...] = y[:, :rows, :width]


def gradients(
    x: np.ndarray, dy: np.ndarray, weight: np.ndarray, plan: Correlation, fold: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return dx, the plan's correlation of dy, and dweight by one transform of dy: both have B^T dy B.

    None where the kernel is large and has more channels than there are tiles: it is then what fills the caches, and
    `jobs` reads it less often.
    """
    A, inputs, outputs = cook_toom(plan.windows[0].taps // fold, x.dtype)[0], fold**2 * dy.shape[3], x.shape[3]
    if len(A) ** 2 * inputs * outputs > LARGE_KERNEL and math.prod(tile_grid(x.shape)) < max(inputs, outputs):
        return None
    kernel, dx = transformed_weight(weight, plan, fold), empty(x.shape, x.dtype)

    def correlate(piece: Strip, tiles: np.ndarray, scratch: dict) -> None:
        _multiply(tiles, kernel, A, None, slice(None), dx, piece, scratch)

    dweight = weight_gradient(dy, x, plan.windows, fold, correlate)
    if plan.adjoint:  # it is of the taps in the plan's order, from dy's channels to x's
        ordered = np.empty(weight.shape, weight.dtype)
        plan.picked(ordered)[...] = dweight.swapaxes(0, 1)
        dweight = ordered
    return dx, dweight


def weight_gradient(
    x: np.ndarray,
    dy: np.ndarray,
    windows: tuple[Window, Window],
    fold: int,
    use: Callable[[Strip, np.ndarray, dict], None] | None = None,
) -> np.ndarray:
    """`weight_gradient` by tiles: dweight = G^T (sum over tiles of (A dy A^T) * (B^T d B)) G.

    As many tiles as fit WEIGHT_BYTES are transformed, then multiplied and added up, frequency by frequency.
    use: is given each strip's B^T d B while they are in a cache, and scratch.
    """
    size, outputs, inputs, across = windows[0].taps // fold, dy.shape[3], fold**2 * x.shape[3], -(-dy.shape[2] // TILE)
    A, _, B = cook_toom(size, x.dtype)
    pieces = strips(tile_grid(dy.shape), max(inputs, outputs), STRIP_NUMBERS, at_least=4)
    counts = [(images.stop - images.start) * (last - first) * across for images, first, last in pieces]
    most = max(counts, default=0)
    together = max(1, min(len(pieces), WEIGHT_BYTES // max(1, len(A) ** 2 * (inputs + outputs) * x.itemsize * most)))
    whole = (len(A), len(A), together * most)
    seen, sent = empty((*whole, inputs), x.dtype), empty((*whole, outputs), x.dtype)
    sides = ((x, windows, fold, B.T, seen), (dy, (Window(0, 1, 1, 1),) * 2, 1, A, sent))
    total = np.zeros((len(A), len(A), outputs, inputs), x.dtype)
    shared = len(pieces) > 1 or total.size > LARGE_KERNEL  # as in `jobs`

    def transform(piece: Strip, begin: int, end: int, scratch: dict) -> None:
        for maps, window, pixel, matrix, into in sides:
            tiles = _transformed_tiles(maps, window, pixel, matrix, piece, across, scratch, into[:, :, begin:end])
            if use and into is seen:
                use(piece, tiles, scratch)

    def multiply(row: int, count: int, scratch: dict) -> None:
        product = room(scratch, "product", total.shape[1:], x.dtype)
        total[row] += np.matmul(sent[row, :, :count].swapaxes(1, 2), seen[row, :, :count], out=product)

    for i in range(0, len(pieces), together):
        ends = list(itertools.accumulate(counts[i : i + together]))
        chunk = zip(pieces[i : i + together], [0, *ends], ends, strict=False)
        run([partial(transform, *job) for job in chunk])
        run([partial(multiply, row, ends[-1]) for row in range(len(A))], shared)
    back, rows = kernel_transform(size, x.dtype), total.reshape(len(A) ** 2, -1).T
    deep = np.empty((len(rows), size * size), x.dtype)
    parallel_for(lambda i: np.matmul(rows[i : i + BLOCK], back, out=deep[i : i + BLOCK]), range(0, len(rows), BLOCK))
    deep = deep.reshape(outputs, fold, fold, x.shape[3], size, size).transpose(0, 3, 4, 1, 5, 2)
    return deep.reshape(outputs, x.shape[3], fold * size, fold * size)
