"""The matrix of inner products of all gradients with all others, in tiles of bounded memory.

Held at a time are the factors and directly formed gradients of a tile's rows and columns, the
activations of the examples that are differentiated at a time, and one leaf's formed gradients
in part: r·B + c·B' + m·A + F bytes with r rows, c columns, m examples at a time; B and B' the
bytes of an example's factors, A of its activations. Of the limit r·B + c·B' take at most three
quarters, m·A and F an eighth each; a tile and a chunk have one example at least.
"""

import functools
import hashlib
import json
import math
import operator
import pathlib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dirasym import digests, files
from dirasym.analysis import products, programs
from dirasym.analysis.factored import Gradient
from dirasym.analysis.problem import Problem
from dirasym.sharding import DATA, num_shares
from dirasym.types import Params

CACHED_BYTES = 2**28  # activations at a time on CPUs: more is slower


class CrossMatrix:
    """⟨∇L_fwd(i), ∇L_rev(j)⟩ of examples of given shapes, tile by tile, compiled once.

    Attributes:
      tile: rows and columns of a tile; the last ones are smaller.
      direct, direct_share: as of `Alignment`.
    """

    def __init__(
        self,
        problem: Problem,
        params: Params,
        rows: Any,
        columns: Any,
        *,
        is_one_loss: bool,
        is_symmetric: bool,
        memory_limit: int,
        chunk_size: int | None,
        mesh: Mesh | None,
    ):
        """Of arrays, or of their shapes and dtypes.

        `is_one_loss` says that both losses are the same, `is_symmetric` that rows and columns
        are the same examples too.
        """
        self.direct, self.direct_share = problem.direct(params)
        self._problem = problem
        self._is_symmetric = is_symmetric
        self._mesh = mesh
        self._num = (_length(rows), _length(columns))
        devices = num_shares(mesh)
        shapes = {
            which: jax.eval_shape(functools.partial(problem.gradient, which), params, _one(side))
            for which, side in (("fwd", rows), ("rev", columns))
        }
        sizes = [_bytes(x) for x in shapes.values()]
        activations = max(1, problem.fwd.num_bytes, problem.rev.num_bytes)
        on_cpu = jax.default_backend() == "cpu"
        self._formed_bytes = memory_limit // 8
        at_once = min(memory_limit // 8, CACHED_BYTES) if on_cpu else memory_limit // 8
        self._chunk = chunk_size or max(1, at_once // activations)
        self.tile = _tile(self._num, sizes, 3 * memory_limit * devices // 4, devices, is_symmetric)
        self._fwd, self._rev = (
            jax.jit(functools.partial(self._gradients, problem, which, one))
            for which, one in shapes.items()
        )
        if is_one_loss:
            self._rev = self._fwd
        # Compiled a leaf at a time: once for all leaves of one shape.
        self._leaf = jax.jit(self._leaf_products)
        self._sum = jax.jit(functools.partial(self._summed, problem))

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """The tiles that are computed: where rows and columns are the same, half of them."""
        (height, width), (num_rows, num_columns) = self.tile, self._num
        for i in range(0, num_rows, height):
            for j in range(i if self._is_symmetric else 0, num_columns, width):
                yield slice(i, min(i + height, num_rows)), slice(j, min(j + width, num_columns))

    def whole(self, params: Params, rows: Any, columns: Any) -> dict[str, jax.Array]:
        """All tiles, put together; under a trace in a loop, which holds one tile at a time."""
        if programs.is_traced((params, rows, columns)) and len(list(self.tiles())) > 1:
            return self._looped(params, rows, columns)
        strips: dict[str, dict[int, list[tuple[int, jax.Array]]]] = {}
        for i, j, found in self._compute(params, rows, columns, lambda i, j: False):
            for name, x in found.items():
                strip = strips.setdefault(name, {})
                strip.setdefault(i.start, []).append((j.start, x))
                if self._is_symmetric and i != j:
                    strip.setdefault(j.start, []).append((i.start, x.T))
        in_order = operator.itemgetter(0)
        return {
            name: jnp.concatenate(
                [
                    jnp.concatenate([x for _, x in sorted(strip[i], key=in_order)], axis=1)
                    for i in sorted(strip)
                ]
            )
            for name, strip in strips.items()
        }

    def _looped(self, params: Params, rows: Any, columns: Any) -> dict[str, jax.Array]:
        """`whole` as loops over tiles of one size, the last of them filled up."""
        height, width = self.tile

        def strip(step):
            i, some = step
            held = self._fwd(params, some)

            def tile(step):
                j, others = step
                inner = lambda: self._inner(held, self._rev(params, others))  # noqa: E731
                if not self._is_symmetric:
                    return inner()
                shapes = jax.eval_shape(inner)
                return jax.lax.cond(j < i, lambda: jax.tree.map(jnp.zeros_like, shapes), inner)

            return jax.lax.map(tile, _in_tiles(columns, width))

        found = jax.lax.map(strip, _in_tiles(rows, height))
        return {name: _joined(x, self._num, self._is_symmetric) for name, x in found.items()}

    def into_files(
        self,
        directory: pathlib.Path,
        params: Params,
        rows: Any,
        columns: Any,
        identity: Mapping[str, Any],
    ) -> dict[str, np.ndarray]:
        """All tiles that are not yet there, each written as it is done.

        `identity` says of what the matrix is; another one's files are refused, as are those of
        other blocks or gradients.
        """
        own = dict(shape=self._num, tile=self.tile, is_symmetric=self._is_symmetric)
        found = MatrixFiles(directory, {**identity, **own, **self._problem.identity})
        for i, j, tile in self._compute(params, rows, columns, found.is_done):
            found.write(i, j, tile, mirror=self._is_symmetric)
        return found.matrices()

    def _compute(
        self, params: Params, rows: Any, columns: Any, is_done: Callable[..., bool]
    ) -> Iterator[tuple[slice, slice, dict[str, jax.Array]]]:
        """Each tile that is not done: its rows, its columns, and block name to [rows, columns]."""
        held: dict[Any, Gradient] = {}
        for i, j in self.tiles():
            if is_done(i, j):
                continue
            keys = ("fwd", i.start), ("fwd" if self._is_symmetric else "rev", j.start)
            for key in list(held):
                if key not in keys:
                    del held[key]  # before others are made
            for key, gradients, side, part in zip(
                keys, (self._fwd, self._rev), (rows, columns), (i, j), strict=True
            ):
                if key not in held:
                    held[key] = gradients(params, self._padded(side, part))
            found = self._inner(held[keys[0]], held[keys[1]])
            shape = (i.stop - i.start, j.stop - j.start)
            yield i, j, {name: x[: shape[0], : shape[1]] for name, x in found.items()}

    def _padded(self, side: Any, part: slice) -> Any:
        """Some examples; on a mesh as many as its devices share equally, the last repeated."""
        extra = -(part.stop - part.start) % num_shares(self._mesh)

        def padded(x):
            some = x[part]
            return jnp.concatenate([some, *[some[-1:]] * extra]) if extra else some

        return jax.tree.map(padded, side)

    def _gradients(
        self, problem: Problem, which: str, shapes: Gradient, params: Params, examples: Any
    ) -> Gradient:
        def local(params, examples):
            one = functools.partial(problem.gradient, which, params)
            return _in_chunks(jax.vmap(one), examples, self._chunk, shapes)

        return self._sharded(local, (PartitionSpec(), PartitionSpec(DATA)))(params, examples)

    def _inner(self, rows: Gradient, columns: Gradient) -> dict[str, jax.Array]:
        sides = (rows,) if rows is columns else (rows, columns)
        inner = [self._leaf(*x) for x in zip(*(side.leaves for side in sides), strict=True)]
        return self._sum(inner, rows.size, columns.size)

    def _leaf_products(self, *sides: products.Leaf) -> jax.Array:
        def gather(x):
            return x if self._mesh is None else jax.lax.all_gather(x, DATA, tiled=True)

        def local(*sides):
            return products.cross_products(
                sides[0], sides[-1], gather=gather, limit=self._formed_bytes
            )

        if any(side is None for side in sides):
            return jnp.zeros((1, 1, 1))  # broadcasts; nothing reads the leaf
        return self._sharded(local, (PartitionSpec(DATA),) * len(sides))(*sides)

    def _summed(
        self, problem: Problem, inner: list[jax.Array], rows: jax.Array, columns: jax.Array
    ) -> dict[str, jax.Array]:
        scale = rows[:, None] * columns[None]
        return {name: x * scale for name, x in problem.parts.sum(inner).items()}

    def _sharded(self, function: Callable[..., Any], specs: tuple[Any, ...]) -> Callable[..., Any]:
        """On a mesh, a device's share of the examples on each; other axes are the compiler's."""
        if self._mesh is None:
            return function
        return jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=specs,
            out_specs=PartitionSpec(DATA),
            axis_names={DATA},
            check_vma=False,
        )


class MatrixFiles:
    """A matrix a block, in memory-mapped files that are filled tile by tile, and resumed.

    Attributes:
      directory: holds `NAME.npy` of each block, `done.npy`, and `identity.json`.
    """

    def __init__(self, directory: pathlib.Path, identity: Mapping[str, Any]):
        """Raises ValueError where the directory holds tiles of another matrix."""
        self.directory = directory
        self._done: np.memmap | None = None
        path = directory / "identity.json"
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"out: {directory} is no directory")
        if path.exists():
            if not path.is_file():
                raise ValueError(f"out: {path} is no file")
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise _damaged(path) from None
            wanted = json.loads(json.dumps(dict(identity)))
            differing = sorted(k for k in wanted if found.get(k) != wanted[k])
            if differing:
                raise ValueError(f"out: {directory} holds another matrix: {differing} differ")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            files.write_atomically(path, json.dumps(dict(identity)))
        self._shape = tuple(identity["shape"])
        self._tile = tuple(identity["tile"])
        named = {name for of_leaf in identity["blocks"] for name in of_leaf if name is not None}
        self._names = sorted({*named, "total"})

    def is_done(self, rows: slice, columns: slice) -> bool:
        """Whether a tile is there."""
        return bool(self._marks()[self._number(rows, columns)])

    def write(self, rows: slice, columns: slice, values: Mapping[str, Any], mirror: bool) -> None:
        """Writes a tile of each block, and then that it is done."""
        for name, value in values.items():
            array = np.asarray(value)
            file = self._file(name, array.dtype)
            file[rows, columns] = array
            if mirror:
                file[columns, rows] = array.T
            file.flush()
        marks = self._marks()
        marks[self._number(rows, columns)] = True
        marks.flush()

    def matrices(self) -> dict[str, np.ndarray]:
        """Block name, and "total", to the matrix, mapped read-only."""
        found: dict[str, np.ndarray] = {}
        for name in self._names:
            path = self._path(name)
            if not path.exists():
                raise _damaged(path)
            found[name] = _loaded(path, "r")
        return found

    def _number(self, rows: slice, columns: slice) -> tuple[int, int]:
        return rows.start // self._tile[0], columns.start // self._tile[1]

    def _marks(self) -> np.memmap:
        if self._done is None:
            counts = tuple(-(-n // size) for n, size in zip(self._shape, self._tile, strict=True))
            self._done = _mapped(self.directory / "done.npy", counts, np.dtype(bool))
        return self._done

    def _file(self, name: str, dtype: Any) -> np.memmap:
        path = self._path(name)
        if not path.exists() and self._marks().any():
            raise _damaged(path)  # a new one would have zeros where tiles are said to be done
        return _mapped(path, self._shape, dtype)

    def _path(self, name: str) -> pathlib.Path:
        return self.directory / f"block-{urllib.parse.quote(name, safe='')}.npy"


def digest(*trees: Any) -> str:
    """Of the contents of all arrays."""
    found = hashlib.blake2b()
    for leaf in jax.tree.leaves(trees):
        digests.feed_array(leaf, found.update)
    return found.hexdigest()


def _damaged(path: pathlib.Path) -> ValueError:
    return ValueError(f"out: {path} is missing or damaged: remove {path.parent} to begin again")


def _loaded(path: pathlib.Path, mode: Literal["r", "r+"]) -> np.memmap:
    try:
        return np.load(path, mmap_mode=mode)
    except (ValueError, EOFError):  # cut short, or empty
        raise _damaged(path) from None


def _mapped(path: pathlib.Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """An array in a file of zeros, or as it was left."""
    if path.exists():
        return _loaded(path, "r+")
    part = path.with_suffix(".part")
    array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
    array.flush()
    part.rename(path)
    return np.load(path, mmap_mode="r+")


def _tile(num, sizes, limit: int, devices: int, is_square: bool) -> tuple[int, int]:
    """Rows and columns whose factors fit into the limit: all columns, if they take half of it."""

    def fitted(bytes_left, size, most):
        count = max(devices, bytes_left // max(1, size) // devices * devices)
        num_tiles = -(-most // count)  # as equal as can be
        return -(-most // (num_tiles * devices)) * devices

    most = [-(-n // devices) * devices for n in num]
    if num[0] * sizes[0] + num[1] * sizes[1] * (not is_square) <= limit:
        return most[0], most[1]
    if is_square:
        side = fitted(limit, 2 * sizes[0], most[0])
        return side, side
    if num[1] * sizes[1] <= limit // 2:
        return fitted(limit - num[1] * sizes[1], sizes[0], most[0]), most[1]
    return tuple(fitted(limit // 2, size, n) for size, n in zip(sizes, most, strict=True))


def _in_tiles(examples: Any, size: int) -> tuple[jax.Array, Any]:
    """Numbers of tiles, and the tiles' examples [tiles, size, ..], the last example repeated."""
    extra = -_length(examples) % size

    def tiled(x):
        x = jnp.concatenate([x, *[x[-1:]] * extra]) if extra else jnp.asarray(x)
        return x.reshape(-1, size, *x.shape[1:])

    tiles = jax.tree.map(tiled, examples)
    return jnp.arange(_length(tiles)), tiles


def _joined(x_IJRC: jax.Array, num: tuple[int, int], is_symmetric: bool) -> jax.Array:
    """Tiles as a matrix; of a symmetric one those below the diagonal are mirrored."""
    num_i, num_j, height, width = x_IJRC.shape
    x = jnp.moveaxis(x_IJRC, 2, 1).reshape(num_i * height, num_j * width)
    if is_symmetric:
        number = jnp.arange(len(x)) // height
        x = jnp.where(number[:, None] > number[None], x.T, x)
    return x[: num[0], : num[1]]


def _in_chunks(function: Callable[[Any], Any], examples: Any, most: int, shapes: Any) -> Any:
    """`function` of at most so many examples at a time, `shapes` those of its result for one.

    `jax.lax.map(batch_size=)` does the same and copies all results at the end. Chunks are as
    equal as can be; the last one begins earlier, rather than be shorter.
    """
    length = _length(examples)
    num_chunks = -(-length // most)
    size = -(-length // num_chunks)

    def step(n, found):
        start = jnp.minimum(n * size, length - size)
        some = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), examples)
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0),
            found,
            function(some),
        )

    whole = jax.tree.map(lambda x: jax.lax.empty((length, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, num_chunks, step, whole)


def _length(examples: Any) -> int:
    return jax.tree.leaves(examples)[0].shape[0]


def _one(examples: Any) -> Any:
    """The shapes of one example."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), examples)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
