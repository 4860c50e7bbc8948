"""Models of linen, NNX, Equinox and Haiku as an `ApplyFn` and its parameters; shifted logits.

Each `from_*` returns `(apply_fn, params)`, which every function of the library takes:

    apply_fn, params = from_nnx(model)
    state = create_state(apply_fn, params, make_optimizer(1e-3), jax.random.key(0))
    reading = dirasym.measure(apply_fn, params, pairs, tokenizer, kind="masked")

A model that names one of `valid_BL` (False at padding), `noise_B` (the noise level of each row)
and `rows_R` (positions asked for) is given it; `keywords={"valid_BL": "attention_mask"}` says
under which name. The model is evaluated without dropout, unless a key is given (`rngs`).
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from dirasym.rows import call
from dirasym.types import ApplyFn, Params

_OPTIONAL = ("valid_BL", "rows_R", "noise_B")
Keywords = Mapping[str, str]


def from_linen(
    model: nn.Module,
    variables: Params,
    *,
    keywords: Keywords | None = None,
    when_training: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[ApplyFn, Params]:
    """A linen module that maps int tokens [B, L] to logits [B, L, V].

    Args:
      model: the module.
      variables: what `model.init` returns, or its "params" alone. Other collections, such as
        "batch_stats", are read and never changed.
      keywords: from an optional argument of `ApplyFn` to the name that the module has for it.
      when_training: arguments of the module in place of those of `settings` when a dropout key
        is given, such as dict(deterministic=False).
      **settings: further arguments of the module, such as deterministic=True.

    Examples:
      >>> model = nn.Sequential([nn.Embed(7, 4), nn.Dense(7)])
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
      >>> apply_fn, params = from_linen(model, variables)
      >>> apply_fn(params, jnp.zeros((2, 3), int)).shape
      (2, 3, 7)

    Raises:
      TypeError: no linen module, variables that are no dict, or an argument that the module does
        not take, or needs and is not given.
      ValueError: `keywords` names what the module, or `ApplyFn`, does not have.
    """
    is_one = isinstance(model, nn.Module) and callable(model)
    _check_module("from_linen", "a linen module (nn.Module)", model, is_one)
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be what model.init returns, got {variables!r:.80}")
    names = _names(model.__call__, keywords)
    _check_settings("from_linen", model.__call__, names, settings, when_training)
    has_collections = "params" in variables
    params = variables["params"] if has_collections else variables
    others = {k: v for k, v in variables.items() if k != "params"} if has_collections else {}

    def apply_fn(params, tokens_BL, *, rngs=None, **optional):
        given = _settings(settings, when_training, rngs) | _renamed(optional, names)
        return model.apply({"params": params, **others}, tokens_BL, rngs=rngs, **given)

    return _signed(apply_fn, names), params


def from_nnx(
    model: Any,
    *,
    keywords: Keywords | None = None,
    when_training: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[ApplyFn, Params]:
    """An NNX module that maps int tokens [B, L] to logits [B, L, V].

    Its `nnx.Param` variables are the parameters, as nested dicts of arrays; all others are read
    and never changed. It is run in `eval()` mode, and with a dropout key in `train()` mode.
    Arguments and errors as of `from_linen`.
    """
    from flax import nnx

    is_one = isinstance(model, nnx.Module) and callable(model)
    _check_module("from_nnx", "an nnx.Module", model, is_one)
    names = _names(model.__call__, keywords)
    _check_settings("from_nnx", model.__call__, names, settings, when_training)
    parts: Any = nnx.split(model, nnx.Param, ...)
    graph, state, others = parts

    def apply_fn(params, tokens_BL, *, rngs=None, **optional):
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        run = nnx.merge(graph, filled, others, copy=True)
        if rngs:
            run.train()
            nnx.reseed(run, **{"default": next(iter(rngs.values())), **rngs})
        else:
            run.eval()
        given = _settings(settings, when_training, rngs) | _renamed(optional, names)
        return run(tokens_BL, **given)

    return _signed(apply_fn, names), nnx.to_pure_dict(state)


def from_equinox(
    model: Any,
    *,
    batched: bool = False,
    keywords: Keywords | None = None,
    **settings: Any,
) -> tuple[ApplyFn, Params]:
    """An Equinox module that maps the int tokens [L] of one row to logits [L, V].

    Its float arrays are the parameters, as a module of the same class in which all else is None.
    Where it takes a `key`, it is given one a row while a dropout key is given, and None, in
    `inference_mode`, otherwise. Modules with an `eqx.nn.State` are not for it.

    Args:
      model: the module.
      batched: whether it takes tokens [B, L] and returns [B, L, V] instead.
      keywords: as of `from_linen`; what stands for `valid_BL` and `noise_B` is of one row too.
      **settings: further arguments of the module.

    Raises:
      TypeError: as `from_linen`.
      ValueError: as `from_linen`; `rows_R` for a module that takes one row.
      ImportError: Equinox is missing.
    """
    import equinox as eqx

    is_one = isinstance(model, eqx.Module) and callable(model)
    _check_module("from_equinox", "an Equinox module (eqx.Module)", model, is_one)
    names = _names(model.__call__, keywords)
    if not batched and "rows_R" in names:
        raise ValueError("rows_R counts positions of a batch: the module must be batched")
    params, static = eqx.partition(model, eqx.is_inexact_array)
    takes_key = "key" in inspect.signature(model.__call__).parameters
    known = {**settings, "key": None} if takes_key else settings
    _check_settings("from_equinox", model.__call__, names, known, None)

    def apply_fn(params, tokens_BL, *, rngs=None, **optional):
        run = eqx.combine(params, static)
        given = _renamed(optional, names)
        if not rngs:
            run = eqx.nn.inference_mode(run)
        key = next(iter(rngs.values())) if rngs and takes_key else None
        if batched:
            return run(tokens_BL, **given, **settings, **({"key": key} if takes_key else {}))
        of_rows = given if key is None else given | {"key": jax.random.split(key, len(tokens_BL))}
        fixed = {"key": None} if takes_key and key is None else {}
        one = lambda tokens_L, given: run(tokens_L, **given, **fixed, **settings)  # noqa: E731
        return jax.vmap(one)(jnp.asarray(tokens_BL), of_rows)

    return _signed(apply_fn, names), params


def from_haiku(
    transformed: Any,
    params: Params,
    *,
    state: Any = None,
    keywords: Keywords | None = None,
    when_training: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[ApplyFn, Params]:
    """A function of Haiku, transformed, that maps int tokens [B, L] to logits [B, L, V].

    Args:
      transformed: of `hk.transform`, or of `hk.transform_with_state` with its `state`.
      params: what its `init` returns.
      state: of `transform_with_state`: read, and never changed.
      keywords: from an optional argument of `ApplyFn` to the function's name for it. The
        transformed function does not say what it takes: only what stands here is given to it.
      when_training: as of `from_linen`.
      **settings: as of `from_linen`.

    Raises:
      TypeError: no transformed function, or parameters that are no dict.
      ValueError: `keywords` names what `ApplyFn` does not have.
    """
    is_other = isinstance(transformed, nn.Module | type)
    is_one = callable(getattr(transformed, "apply", None)) and not is_other
    _check_module("from_haiku", "what hk.transform returns", transformed, is_one)
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be what transformed.init returns, got {params!r:.80}")
    names = _names(None, keywords)

    def apply_fn(params, tokens_BL, *, rngs=None, **optional):
        key = next(iter(rngs.values())) if rngs else None
        given = _settings(settings, when_training, rngs) | _renamed(optional, names)
        if state is None:
            return transformed.apply(params, key, tokens_BL, **given)
        return transformed.apply(params, state, key, tokens_BL, **given)[0]

    return _signed(apply_fn, names), params


def shift_logits(apply_fn: ApplyFn) -> ApplyFn:
    """A masked model whose logits at a position predict the *next* one, as one that does not.

    Dream (arXiv 2508.15487) keeps the next-token head of the causal model it began as: the
    logits of token l stand at position l−1. The row's first token has no position before it and
    keeps the logits of its own, as in Dream's code.

    Examples:
      >>> def says_next(params, tokens_BL):
      ...     return jax.nn.one_hot(tokens_BL + 1, 9)  # counts on from what it reads
      >>> logits = shift_logits(says_next)({}, jnp.array([[3, 0, 0]]))
      >>> logits.argmax(axis=-1).tolist()
      [[4, 4, 1]]
    """

    @functools.wraps(apply_fn)
    def shifted(params, tokens_BL, *, rows_R=None, **optional):
        tokens_BL = jnp.asarray(tokens_BL)
        size, length = tokens_BL.size, tokens_BL.shape[1]
        has_before_BL = jnp.broadcast_to(jnp.arange(length) > 0, tokens_BL.shape)
        valid_BL = optional.get("valid_BL")
        if valid_BL is not None:  # what stands before the first token is padding
            has_before_BL &= jnp.pad(jnp.asarray(valid_BL)[:, :-1], ((0, 0), (1, 0)))
        source_BL = jnp.arange(size).reshape(tokens_BL.shape) - has_before_BL
        if rows_R is not None:
            # Capacity that is not in use stays so.
            rows_R = source_BL.reshape(-1).at[rows_R].get(mode="fill", fill_value=size)
            return call(apply_fn, params, tokens_BL, rows_R=rows_R, **optional)
        logits_BLV = call(apply_fn, params, tokens_BL, **optional)
        return logits_BLV.reshape(size, -1)[source_BL]

    return cast(ApplyFn, shifted)


def _names(model: Callable[..., Any] | None, keywords: Keywords | None) -> dict[str, str]:
    """From our optional arguments to what the model calls them; those that it takes."""
    keywords = dict(keywords or {})
    taken = {} if model is None else inspect.signature(model).parameters
    for ours, theirs in keywords.items():
        if ours not in _OPTIONAL:
            raise ValueError(f"keywords: {ours!r} is none of {', '.join(_OPTIONAL)}")
        has_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        if model is not None and theirs not in taken and not has_any:
            raise ValueError(f"keywords: the model takes no {theirs!r} for {ours}")
    return {ours: ours for ours in _OPTIONAL if ours in taken} | keywords


def _check_module(by: str, wanted: str, model: Any, is_one: bool) -> None:
    if not is_one:
        raise TypeError(f"{by} takes {wanted}, got {model!r:.80}")


def _check_settings(
    by: str,
    model: Callable[..., Any],
    names: Keywords,
    settings: Mapping[str, Any],
    when_training: Mapping[str, Any] | None,
) -> None:
    """Raises TypeError for what a module does not take, and for what it needs beside its tokens."""
    others = list(inspect.signature(model).parameters.values())[1:]
    named = {p.name for p in others if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in others):
        for name in {**settings, **(when_training or {})}:
            if name not in named:
                raise TypeError(f"{by}: the module takes no {name!r}")
    for p in others:
        is_given = p.name in settings or p.name in names.values()
        if p.name in named and p.default is p.empty and not is_given:
            raise TypeError(f"{by}: the module needs {p.name!r}: pass it, as {by}(.., {p.name}=..)")


def _renamed(optional: Mapping[str, Any], names: Keywords) -> dict[str, Any]:
    return {names[ours]: value for ours, value in optional.items() if value is not None}


def _settings(settings: Mapping, when_training: Mapping | None, rngs: Any) -> dict[str, Any]:
    return {**settings, **(when_training or {})} if rngs else dict(settings)


def _signed(apply_fn: Callable[..., jax.Array], names: Keywords) -> ApplyFn:
    """The function with a signature that says which optional arguments it takes."""
    parameters = [
        *(inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in ("params", "tokens_BL")),
        *(
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None)
            for n in (*names, "rngs")
        ),
    ]
    apply_fn.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return cast(ApplyFn, apply_fn)
