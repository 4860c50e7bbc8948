import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import digests
from dirasym.analysis import programs
from dirasym.analysis.factored import Traced

SCALE = 2.0


def _make(scale, dtype=jnp.float32):
    return lambda x: jnp.asarray(scale, dtype) * x


def _recursive(n):
    return n and _recursive(n - 1)


def _reads_global(x):
    return SCALE * x


@pytest.mark.parametrize(
    "value",
    [2.0, -0.0, float("nan"), 1j, np.arange(3), {"a": [np.ones(2), (1, "b")]}, jnp.float32, None],
    ids=repr,
)
def test_equal_values_are_known_again(value):
    assert programs.fingerprint(_make(value)) == programs.fingerprint(_make(value))
    assert hash(programs.fingerprint(value)) == hash(programs.fingerprint(value))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_make(0.0), _make(-0.0)),
        (_make(1), _make(1.0)),
        (_make(np.arange(3)), _make(np.arange(3)[::-1])),
        (_make(np.arange(3)), _make(np.arange(3.0))),
        (_make(1), _make(1, jnp.bfloat16)),
        (_make(jnp.ones(2)), _make(jnp.ones(2))),  # of JAX: by identity
        (functools.partial(_make, 1), functools.partial(_make, 2)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x, y=1: x + y, lambda x, y=2: x + y),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_other_values_are_other_programs(one, other):
    assert programs.fingerprint(one) != programs.fingerprint(other)


def test_globals_count_too(monkeypatch):
    before = programs.fingerprint(_reads_global)
    assert before == programs.fingerprint(_reads_global)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert before != programs.fingerprint(_reads_global)


def test_an_object_changed_in_place_is_known_by_its_fields_or_itself():
    config = types.SimpleNamespace(scale=1.0)
    before = programs.fingerprint(_make(config))
    config.scale = 2.0
    assert before != programs.fingerprint(_make(config))


def test_functions_that_call_themselves():
    assert programs.fingerprint(_recursive) == programs.fingerprint(_recursive)


def test_what_is_traced_is_never_kept():
    made = []

    def make(value):
        made.append(value)
        return value

    programs.once(make, dict(value=1))
    programs.once(make, dict(value=1))
    assert len(made) == 1
    jax.make_jaxpr(lambda x: programs.once(make, dict(value=lambda: x)) and x)(1.0)
    jax.make_jaxpr(lambda x: programs.once(make, dict(value=lambda: x)) and x)(1.0)
    assert len(made) == 3


def test_the_least_used_program_is_dropped():
    made = []

    def make(number):
        made.append(number)
        return number

    for number in range(programs.MAX_PROGRAMS + 1):
        programs.once(make, dict(number=number))
    programs.once(make, dict(number=0))
    programs.once(make, dict(number=programs.MAX_PROGRAMS))
    assert made.count(0) == 2 and made.count(programs.MAX_PROGRAMS) == 1


def _digest(function, x=1.0):
    return digests.of_program(jax.make_jaxpr(function)(x))


@jax.custom_vjp
def _ruled(x):
    return x


_ruled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))


def _one_of_two(number):
    """Of the results of one operation."""

    def function(x):
        step = lambda c, _: ((c[0] * x, c[1] + x), None)  # noqa: E731
        return jax.lax.scan(step, (x, x), None, 2)[0][number]

    return function


def test_a_digest_is_of_operations_and_constants_wherever_they_are():
    inner = lambda array: lambda x: jax.jit(lambda x: array * x)(x)  # noqa: E731
    scan = lambda n: lambda x: jax.lax.scan(lambda c, _: (c * x, None), x, None, n)[0]  # noqa: E731
    ones = np.ones(2000, np.float32)
    others = ones.copy()
    others[1000] = 2  # where a text would say ...
    kinds = [inner(ones), inner(others), inner(ones[:2]), scan(2), scan(3), jnp.sin, jnp.cos]
    kinds += [lambda x: x * 2, lambda x: x * -2, lambda x: jax.nn.relu(x), lambda x: jnp.float32(0)]
    kinds += [lambda x: x - x * x, lambda x: x * x - x, lambda x: (x, x * x), lambda x: (x * x, x)]
    kinds += [_one_of_two(0), _one_of_two(1)]
    found = [_digest(lambda x, f=f: f(x)) for f in kinds]
    assert len(set(found)) == len(kinds)
    assert found == [_digest(lambda y, f=f: f(y)) for f in kinds]
    assert _digest(jnp.sin, 1.0) != _digest(jnp.sin, jnp.ones(2))
    key = lambda seed: _digest(lambda x: x * jax.random.uniform(jax.random.key(seed)))  # noqa: E731
    assert key(0) != key(1) and key(0) == key(0)


def test_a_gradients_digest_sees_a_custom_rule():
    plain, ruled = (Traced.of("loss", f, 1.0) for f in (lambda x: x * 1.0, lambda x: _ruled(x)))
    again = Traced.of("loss", lambda x: _ruled(x), 1.0)
    assert ruled.gradient_digest(1) == again.gradient_digest(1) != plain.gradient_digest(1)
    _ruled.defvjp(lambda x: (x, None), lambda _, g: (3 * g,))
    other = Traced.of("loss", lambda x: _ruled(x), 1.0)
    assert other.gradient_digest(1) != ruled.gradient_digest(1)
