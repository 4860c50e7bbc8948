"""A parameter seen through operations that move its entries and change none.

An axis of a view is a row-major product of atoms: runs of entries of the leaf that lie `stride`
apart. A reshape splits and joins atoms, a transpose permutes axes; so one can say of any view
which entries of the leaf it contracts, and compare two uses of one leaf.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Atom(NamedTuple):
    """`size` entries of a leaf, each `stride` after the last."""

    stride: int
    size: int


Atoms = tuple[Atom, ...]


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
      scan: what tells the scan that walks over these layers, if one does.
    """

    value: Any
    leaf: int
    axes: tuple[Atoms, ...]
    size: int
    layers: tuple[int, int] | None = None
    scan: object | None = None

    @classmethod
    def of(cls, value: Any, leaf: int) -> "View":
        """A parameter as it is."""
        strides = np.cumprod([1, *value.shape[:0:-1]])[::-1]
        axes = tuple(
            () if size == 1 else (Atom(int(stride), size),)
            for stride, size in zip(strides, value.shape, strict=False)
        )
        return cls(value, leaf, axes, math.prod(value.shape))

    def moved(self, name: str, params: dict[str, Any], value: Any) -> "View | None":
        """The view after a primitive, with its outcome; None if entries are changed or lost."""
        if name == "convert_element_type":
            axes = self.axes if np.issubdtype(_kind(value), np.inexact) else None
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

    def sliced(self, start: int, number: int, value: Any) -> "View | None":
        """Some of the layers that are stacked on the leaf's first axis, which is still there."""
        if self.layers is not None or not self._first_is_whole():
            return None
        first = () if number == 1 else (Atom(self.axes[0][0].stride, number),)
        return dataclasses.replace(
            self,
            value=value,
            axes=(first, *self.axes[1:]),
            size=self.size // self.shape[0],
            layers=(start, number),
        )

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

    def _first_is_whole(self) -> bool:
        """Whether the first axis is the leaf's own."""
        if not self.axes or len(self.axes[0]) > 1:
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
