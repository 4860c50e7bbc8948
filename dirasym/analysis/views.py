"""A parameter seen through operations that move its entries and change none.

An axis of a view is a row-major product of atoms: runs of entries of the leaf that lie `stride`
apart. A reshape splits and joins atoms, a transpose permutes axes; so one can say of any view
which entries of the leaf it contracts, and compare two uses of one leaf.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Atom(NamedTuple):
    """`size` entries of a leaf, each `stride` after the last."""

    stride: int
    size: int


Atoms = tuple[Atom, ...]


class Part(NamedTuple):
    """Some entries of an axis of a leaf, as of a matrix that is split by its columns.

    Attributes:
      whole: the axis.
      start, number: of its entries.
      is_first: it is the leaf's first axis, which may stack layers instead.
    """

    whole: Atom
    start: int
    number: int
    is_first: bool = False

    def filled(self, atoms: Iterable[Atom]) -> Atoms:
        """Atoms in the leaf's order, with the whole axis where the part is among them."""
        found, at = list(merged(atoms)), self.at(atoms)
        if at is not None:
            stride = found[at].stride  # less than the axis's where inner axes follow
            found[at] = Atom(stride, self.whole.size * self.whole.stride // stride)
        return merged(found)

    def padded(self, x: jax.Array, atoms: Iterable[Atom]) -> jax.Array:
        """[.., entries of the atoms in the leaf's order] with zeros for the rest of the axis."""
        found, at = merged(atoms), self.at(atoms)
        if at is None:
            return x
        inner = self.whole.stride // found[at].stride
        after = self.whole.size - self.start - self.number
        pads = [(0, 0)] * (x.ndim - 1 + len(found))
        pads[x.ndim - 1 + at] = (self.start * inner, after * inner)
        padded = jnp.pad(x.reshape(*x.shape[:-1], *(atom.size for atom in found)), pads)
        return padded.reshape(*x.shape[:-1], -1)

    def at(self, atoms: Iterable[Atom]) -> int | None:
        """Which of the atoms, once merged, holds the part."""
        stride, end = self.whole.stride, self.whole.stride * self.number
        for n, atom in enumerate(merged(atoms)):
            if atom.stride <= stride and atom.stride * atom.size == end:
                return n
        return None


@dataclasses.dataclass(frozen=True)
class View:
    """A parameter, or a layer of it, through structural operations.

    Attributes:
      value: the array, or its shape and dtype.
      leaf: the parameter's number.
      axes: the atoms of each axis.
      layers: (first, number) of the layers that this is, on the leaf's first axis; None where
        that axis is whole, and one of `axes`.
      size: entries of the leaf, or of a layer of it.
      length: of the leaf's first axis.
      scan: what tells the scan that walks over these layers, if one does.
      part: the entries of an axis that are left after a slice, of more than one.
    """

    value: Any
    leaf: int
    axes: tuple[Atoms, ...]
    size: int
    length: int = 1
    layers: tuple[int, int] | None = None
    scan: object | None = None
    part: Part | None = None

    @classmethod
    def of(cls, value: Any, leaf: int) -> "View":
        """A parameter as it is."""
        strides = np.cumprod([1, *value.shape[:0:-1]])[::-1]
        axes = tuple(
            () if size == 1 else (Atom(int(stride), size),)
            for stride, size in zip(strides, value.shape, strict=False)
        )
        return cls(value, leaf, axes, math.prod(value.shape), *value.shape[:1])

    def moved(self, name: str, params: dict[str, Any], value: Any) -> "View | None":
        """The view after a primitive, with its outcome; None if entries are changed or lost."""
        if name == "convert_element_type":
            axes = self.axes if np.issubdtype(_kind(value), np.floating) else None
        elif name == "copy":
            axes = self.axes
        elif name == "transpose":
            axes = tuple(self.axes[n] for n in params["permutation"])
        elif name in ("squeeze", "expand_dims", "reshape"):
            axes = None if params.get("dimensions") and name == "reshape" else self.axes
            axes = axes and _reshaped(axes, value.shape)
        elif name == "broadcast_in_dim" and math.prod(value.shape) == math.prod(self.shape):
            axes = _reshaped(self.axes, value.shape)
        else:
            axes = None
        return None if axes is None else dataclasses.replace(self, value=value, axes=axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.value.shape

    def sliced(self, axis: int, start: int, number: int, value: Any) -> "View | None":
        """Some entries of an axis; on the leaf's first one they are also layers of a stack."""
        is_first = axis == 0 and self.layers is None and self._first_is_whole()
        if number < 1 or not (is_first or (number > 1 and self._is_whole(axis))):
            return None
        axes, part = list(self.axes), self.part
        if number == 1:
            axes[axis] = ()
        else:
            (whole,) = self.axes[axis]
            axes[axis] = (Atom(whole.stride, number),)
            if not is_first or part is None:
                part = Part(whole, start, number, is_first)
        found = dataclasses.replace(self, value=value, axes=tuple(axes), part=part)
        if not is_first:
            return found
        size = self.size // self.shape[0]
        return dataclasses.replace(found, size=size, layers=(start, number))

    def used_as(self, *sides: Atoms) -> "View":
        """The view as a use shows it that covers these atoms: as layers, or as a part of one."""
        if self.part is None or not self.part.is_first:
            return self
        if all(self.part.at(atoms) is None for atoms in sides):
            return dataclasses.replace(self, part=None)
        return dataclasses.replace(self, layers=None, size=self.size * self.part.whole.size)

    def scanned(self, value: Any, scan: object) -> "View | None":
        """The layer that one step of a scan sees."""
        if self.layers is None and self._first_is_whole():
            layers, size = (0, self.shape[0]), self.size // self.shape[0]
        elif self.layers is not None and self.scan is None and self.layers[1] == self.shape[0]:
            layers, size = self.layers, self.size
        else:
            return None
        axes = self.axes[1:]
        return dataclasses.replace(
            self, value=value, axes=axes, size=size, layers=layers, scan=scan
        )

    def _is_whole(self, axis: int) -> bool:
        """Whether an axis is one atom, of which nothing was cut, and no other axis was."""
        if len(self.axes[axis]) != 1 or not (self.part is None or self.part.is_first):
            return False
        if self.part is None:
            return True
        first, stride = self.part.whole.stride, self.axes[axis][0].stride
        return not first <= stride < first * self.part.number

    def _first_is_whole(self) -> bool:
        """Whether the first axis is the leaf's own: a part of it, or more, is no layer."""
        if not self.axes or len(self.axes[0]) > 1 or self.shape[0] != self.length:
            return False
        first = self.axes[0] or (Atom(self.size, 1),)
        return first[0].stride * first[0].size == self.size


def merged(atoms: Iterable[Atom]) -> Atoms:
    """Atoms in the leaf's order, with neighbours joined: equal for equal sets of entries."""
    joined: list[Atom] = []
    for atom in sorted(atoms, reverse=True):
        if joined and joined[-1].stride == atom.stride * atom.size:
            joined[-1] = Atom(atom.stride, joined[-1].size * atom.size)
        else:
            joined.append(atom)
    return tuple(joined)


def order(atoms: Sequence[Atom]) -> list[int]:
    """The permutation that puts atoms in the leaf's order."""
    return sorted(range(len(atoms)), key=lambda n: atoms[n], reverse=True)


def _kind(value: Any) -> Any:
    # NumPy does not count bfloat16 among its floats.
    return np.float32 if str(value.dtype).startswith(("bfloat", "float")) else value.dtype


def _reshaped(axes: Sequence[Atoms], shape: Sequence[int]) -> tuple[Atoms, ...] | None:
    """Atoms of the axes of a row-major reshape; None where an atom cannot be split so."""
    left = [atom for axis in axes for atom in axis]
    found: list[Atoms] = []
    for size in shape:
        axis: list[Atom] = []
        while size > 1:
            stride, there = left.pop(0)
            if there <= size:
                if size % there:
                    return None
                axis.append(Atom(stride, there))
                size //= there
            else:
                if there % size:
                    return None
                axis.append(Atom(stride * (there // size), size))
                left.insert(0, Atom(stride, there // size))
                size = 1
        found.append(tuple(axis))
    return tuple(found)
