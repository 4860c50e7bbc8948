"""A view's atoms say which entries of the leaf stand where: those that NumPy moves there."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis import views
from dirasym.analysis.views import Atom, View


def _leaf(*shape):
    """Its entries are their own numbers."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def _entries(view):
    """Which entry of the leaf, or of a layer of it, stands at each place."""
    axes = [
        functools.reduce(
            lambda x, atom: np.add.outer(x, atom.stride * np.arange(atom.size)).ravel(),
            axis,
            np.zeros(1),
        )
        for axis in view.axes
    ]
    return functools.reduce(np.add.outer, axes, np.zeros(()))


def _moved(view, name, value, **params):
    found = view.moved(name, params, value)
    np.testing.assert_array_equal(_entries(found), value)
    assert found.value is value and (found.leaf, found.size) == (view.leaf, view.size)
    assert all(atom.size > 1 for axis in found.axes for atom in axis)
    return found


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 4), (5,), (1, 4), ()])
def test_a_parameter_as_it_is_has_its_own_entries(shape):
    view = View.of(_leaf(*shape), 7)
    np.testing.assert_array_equal(_entries(view), _leaf(*shape))
    assert (view.leaf, view.size, view.shape) == (7, np.prod(shape), shape)
    assert view.layers is None and view.scan is None


def test_entries_stand_where_transposes_and_reshapes_put_them():
    x = _leaf(2, 6, 4)
    view = View.of(x, 0)
    turned = _moved(view, "transpose", x.transpose(2, 0, 1), permutation=(2, 0, 1))
    joined = _moved(turned, "reshape", turned.value.reshape(8, 6), dimensions=None)
    split = _moved(joined, "reshape", joined.value.reshape(4, 2, 2, 3), dimensions=None)
    wide = _moved(split, "expand_dims", split.value[:, None], dimensions=(1,))
    _moved(wide, "squeeze", split.value, dimensions=(1,))
    _moved(wide, "copy", wide.value.copy())
    _moved(view, "broadcast_in_dim", x[None], shape=(1, 2, 6, 4), broadcast_dimensions=(1, 2, 3))
    whole = _moved(view, "reshape", x.ravel(), dimensions=None)
    _moved(whole, "reshape", x.reshape(4, 3, 1, 4), dimensions=None)
    for dtype in (np.float16, jnp.bfloat16):
        assert view.moved("convert_element_type", {}, jnp.zeros(x.shape, dtype)).axes == view.axes


def test_what_changes_or_repeats_entries_is_no_view():
    x = _leaf(3, 4)
    view = View.of(x, 0)
    turned = view.moved("transpose", dict(permutation=(1, 0)), x.T)
    for shape in ((3, 4), (6, 2), (2, 6)):  # would take rows of what is transposed apart
        found = turned.moved("reshape", {}, x.T.reshape(shape))
        want = None if shape != (2, 6) else x.T.reshape(shape)
        assert (found is None) == (want is None), shape
        if found is not None:
            np.testing.assert_array_equal(_entries(found), want)
    repeated = np.broadcast_to(x, (2, 3, 4))
    assert view.moved("broadcast_in_dim", {}, repeated) is None
    assert view.moved("reshape", dict(dimensions=(1, 0)), x.reshape(4, 3)) is None
    assert view.moved("sin", {}, x) is None
    assert view.moved("convert_element_type", {}, x.astype(int)) is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_slices_of_a_stack_are_layers_of_it(number):
    x = _leaf(4, 2, 3)
    view = View.of(x, 0)
    some = view.sliced(0, 1, number, x[1 : 1 + number])
    np.testing.assert_array_equal(_entries(some), x[:number])  # from the first of its layers
    assert (some.layers, some.size, some.leaf) == ((1, number), 6, 0)
    assert some.sliced(0, 0, 1, x[:1]) is None
    turned = view.moved("transpose", dict(permutation=(1, 0, 2)), x.swapaxes(0, 1))
    assert turned.sliced(0, 0, 1, x[:, 0]) is None  # rows of each layer
    joined = view.moved("reshape", {}, x.reshape(8, 3))
    assert joined.sliced(0, 0, 1, x[0]) is None  # its first axis is two of the leaf's
    scan = object()
    step = some.scanned(x[0], scan)
    np.testing.assert_array_equal(_entries(step), x[0])
    assert (step.layers, step.size, step.scan) == ((1, number), 6, scan)
    assert step.scanned(x[0, 0], object()) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_a_part_of_its_axis(axis):
    """Padded, the slice is the leaf with zeros for what was cut, also once its axis is split."""
    x = _leaf(6, 8, 10) + 1
    some = np.take(x, range(2, 6), axis)
    view = View.of(x, 0).sliced(axis, 2, 4, some)
    apart = view.moved("reshape", {}, some.reshape(*some.shape[:axis], 2, 2, *x.shape[axis + 1 :]))
    want = np.where(np.isin(np.arange(x.shape[axis]), range(2, 6)), np.moveaxis(x, axis, -1), 0)
    for found in (view, apart):
        atoms = [atom for of_axis in found.axes for atom in of_axis]
        found = found.used_as(tuple(atoms))
        assert (found.layers, found.size) == (None, x.size)
        assert found.part.filled(atoms) == (Atom(1, x.size),)
        padded = found.part.padded(some.reshape(1, -1), atoms)
        np.testing.assert_array_equal(padded[0], np.moveaxis(want, -1, axis).ravel())
    (mine,) = view.axes[axis]
    others = [atom for atom in atoms if not mine.stride <= atom.stride < 4 * mine.stride]
    assert view.part.filled(others) == views.merged(others)
    np.testing.assert_array_equal(view.part.padded(x, others), x)
    assert view.sliced(axis, 1, 2, None) is None and view.sliced(axis, 0, 1, None) is None


def test_layers_stay_layers_where_their_axis_is_not_used():
    x = _leaf(4, 2, 3)
    some = View.of(x, 0).sliced(0, 1, 2, x[1:3])
    inner = some.scanned(x[0], object()).used_as((Atom(3, 2),), (Atom(1, 3),))
    assert (inner.layers, inner.part) == ((1, 2), None)
    assert View.of(x, 0).sliced(2, 0, 1, x[..., :1]) is None  # one column
    assert View.of(x, 0).sliced(2, 1, 0, x[..., :0]) is None
    assert View.of(x, 0).sliced(0, 1, 0, x[:0]) is None


def test_a_scan_walks_over_the_first_axis_of_a_leaf():
    x, scan = _leaf(4, 2, 3), object()
    step = View.of(x, 3).scanned(x[0], scan)
    np.testing.assert_array_equal(_entries(step), x[0])
    assert (step.layers, step.size, step.scan, step.leaf) == ((0, 4), 6, scan, 3)
    one = View.of(x[:1], 0)
    assert one.scanned(x[0], scan).layers == one.sliced(0, 0, 1, x[:1]).layers == (0, 1)
    flat = View.of(x, 0).sliced(0, 1, 1, x[1:2]).moved("squeeze", {}, x[1])
    assert flat.scanned(x[1, 0], scan) is None  # over rows of one layer
    assert View.of(_leaf(), 0).scanned(None, scan) is None


def test_atoms_of_equal_entries_are_equal_once_merged():
    row, column = Atom(1, 4), Atom(4, 3)
    assert views.merged([row, column]) == views.merged([column, row]) == (Atom(1, 12),)
    assert views.merged([Atom(1, 2), Atom(2, 2), column]) == (Atom(1, 12),)
    assert views.merged([column, Atom(1, 2)]) == (column, Atom(1, 2))  # half of each row
    assert views.merged([Atom(12, 2), row]) == (Atom(12, 2), row)
    assert views.merged([]) == ()
    assert views.order([row, Atom(12, 2), column]) == [1, 2, 0]
