"""Parameter blocks: one grammar of names, whether layers are scanned or not.

A parameter is known by its path, such as `blocks_3/attention/query/kernel`. A leaf that stacks
the layers on its first axis, as `nn.scan` stores them (`blocks/block/attention/query/kernel`),
is as many parameters as it has layers, of the same names as if they were not stacked.
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dirasym.types import Params

BlockOf = (
    Literal["layer", "module", "role"] | str | re.Pattern[str] | Callable[[str], str | None] | None
)
TOTAL = "total"

_SCANNED = re.compile(r"(^|/)(\w+)s/\2(?=/)")  # blocks/block/, layers/layer/
_NUMBERED = re.compile(r"(\w+_)?\d+")  # blocks_3, or 3 as in layers/3
_MADE = r"(_(proj|lin|einsum|kernel|weight))?"  # as frameworks and checkpoints go on
_QUERIES_AND_KEYS = re.compile(rf"(query|key|[qk]){_MADE}|(w_?|to_)[qk]", re.IGNORECASE)
_VALUES_AND_OUTPUTS = re.compile(
    rf"(value|v|out|output|o){_MADE}|(w_?|to_)(v|o|out)|(c_)?proj|linear|dense|attn_vec_einsum",
    re.IGNORECASE,
)
_FUSED = re.compile(r"\w*qkv\w*|c_attn|query_key_value|(to_)?kv\w*|in_proj\w*", re.IGNORECASE)
_ALONE = re.compile(r"[qkvo]_proj")  # what no attention needs to stand above
_HEADED = re.compile(r"(query|key|value)(_proj)?|[qkv](_proj)?")
_OUTPUTS = re.compile(r"(out|o|output)(_proj)?")
_ATTENTION = re.compile(r"\w*(attention|attn)\w*|(\w+_)?mha(_\d+)?", re.IGNORECASE)
_BERT_MLP = re.compile(r"(^|/)layer/\d+/(intermediate|output)/dense/")
_MLP = re.compile(r"\w*(mlp|ffn|feed_?forward|experts)(_\d+)?", re.IGNORECASE)
_LEAVES = ("kernel", "weight", "bias", "w", "b", "a", "scale", "value")
_NORM = re.compile(r"\w*norm(_\d+)?|ln_?\w*", re.IGNORECASE)


def layer(path: str) -> str:
    """The layer that a parameter belongs to: the path down to its first numbered part.

    Where no part has a number, the first part; a collection named `params` is not counted.

    Examples:
      >>> layer("blocks_3/attention/query/kernel"), layer("layers/3/weight"), layer("head/kernel")
      ('blocks_3', 'layers/3', 'head')
    """
    return "/".join(_split_at_layer(path)[0])


def module(path: str) -> str:
    """A layer's part that a parameter belongs to.

    Examples:
      >>> module("blocks_3/attention/query/kernel"), module("embed/embedding")
      ('blocks_3/attention', 'embed')
    """
    first, rest = _split_at_layer(path)
    return "/".join(first + rest[: min(1, len(rest) - 1)])


def role(path: str) -> Literal["storage", "routing", "other"]:
    """What a parameter of a transformer does: stores an association, or routes to it.

    Storage is values, the output projection and the MLP; routing is queries and keys; other are
    embedding, head, norms, queries, keys and values in one matrix, and whatever has another name
    (arXiv 2602.02133, version 2). Names are those of this library, of linen, NNX, Haiku and
    Equinox, and of common checkpoints; `blocks` takes any other function of the path in place of
    this one.

    Examples:
      >>> [role(f"blocks_3/{x}/kernel") for x in ("attention/value", "mlp/up", "attention/key")]
      ['storage', 'storage', 'routing']
      >>> role("embed/embedding"), role("blocks_3/mlp_norm/scale")
      ('other', 'other')
    """
    *parents, last = path.split("/")
    if any(map(_NORM.fullmatch, parents)):
        return "other"
    if not is_attention(path):
        is_mlp = any(map(_MLP.fullmatch, parents)) or _BERT_MLP.search(path)
        return "storage" if is_mlp else "other"
    parts = parents if last in _LEAVES else [*parents, last]
    if any(map(_FUSED.fullmatch, parts)):
        return "other"
    if any(map(_QUERIES_AND_KEYS.fullmatch, parts)):
        return "routing"
    return "storage" if any(map(_VALUES_AND_OUTPUTS.fullmatch, parts)) else "other"


def is_attention(path: str) -> bool:
    """Whether a parameter is one of an attention's projections, by its path.

    Examples:
      >>> [is_attention(f"layers/0/{x}/weight") for x in ("mha/qkv", "q_proj", "attn/norm", "mlp")]
      [True, True, False, False]
    """
    parts = path.split("/")
    if any(map(_NORM.fullmatch, parts[:-1])):
        return False
    return any(map(_ATTENTION.fullmatch, parts[:-1])) or any(map(_ALONE.fullmatch, parts))


def head_axis(path: str, ndim: int) -> int | None:
    """The axis of heads of a parameter of attention, counted from the end; None of others.

    Kernels of queries, keys and values are [width, heads, head width], their biases [heads,
    head width], and the output projection's kernel [heads, head width, width].

    Examples:
      >>> attention = "blocks_0/attention"
      >>> head_axis(f"{attention}/query/kernel", 3), head_axis(f"{attention}/out/bias", 1)
      (-2, None)
    """
    *parts, last = path.split("/")
    if not any(map(_ATTENTION.fullmatch, parts)) or any(map(_NORM.fullmatch, parts)):
        return None
    if not any(map(_HEADED.fullmatch, parts)):
        return -3 if any(map(_OUTPUTS.fullmatch, parts)) and ndim == 3 else None
    return -2 if ndim == (2 if last == "bias" else 3) else None


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The leaves of a parameter pytree, and the block of each of their parts.

    Attributes:
      paths: of the leaves, as they are stored.
      names: of each leaf, the block of its parts: of every layer of a stacked leaf, else one.
        None where a part belongs to no block.
      is_stacked: of each leaf.
      head_axes: of each leaf that is split into heads, the axis of these, from the end.
    """

    paths: tuple[str, ...]
    names: tuple[tuple[str | None, ...], ...]
    is_stacked: tuple[bool, ...]
    head_axes: tuple[int | None, ...]

    @classmethod
    def of(
        cls,
        params: Params,
        blocks: BlockOf,
        *,
        scanned: Collection[int] = (),
        heads: bool = False,
    ) -> "Blocks":
        """Names the parts of all leaves.

        Args:
          params: pytree of float arrays.
          blocks: "layer", "module" or "role" (see the functions of these names); a function of
            the path to a name, or None for no block; a regex, whose first group that took part,
            or whole match, is the name (no block where nothing matches); or None, for a block
            a path.
          scanned: leaves, by number, that stack layers, beside those whose path says so.
          heads: split the parameters of attention that have an axis of heads.

        Raises:
          ValueError: no arrays, blocks that match nothing, an empty name, or "total".
          TypeError: parameters that are not floats, by path; blocks that are no names.
        """
        flat, _ = jax.tree_util.tree_flatten_with_path(params)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
        paths = [path or "params" for path in paths]  # an array alone has no path
        shapes = [_float_shape(path, leaf) for path, (_, leaf) in zip(paths, flat, strict=True)]
        if not paths:
            raise ValueError("params has no arrays")
        templates = _templates(paths, shapes, scanned)
        stacked = [len(template) == 2 for template in templates]
        axes = [
            head_axis(path, len(shape) - is_stacked) if heads else None
            for path, shape, is_stacked in zip(paths, shapes, stacked, strict=True)
        ]
        name_of = _function(blocks)
        names = [
            tuple(name_of(path) for layer in _each_layer(*leaf) for path in _each_head(layer, *at))
            for *leaf, at in zip(templates, shapes, zip(shapes, axes, strict=True), strict=True)
        ]
        found = {name for of_leaf in names for name in of_leaf}
        if found == {None}:
            raise ValueError(f"blocks matches no parameter; paths are like {paths[0]!r}")
        for reserved, why in ((TOTAL, "is the name of the sum"), ("", "is no name")):
            if reserved in found:
                raise ValueError(f"blocks: {reserved!r} {why}, and cannot be a block's")
        return cls(tuple(paths), tuple(names), tuple(stacked), tuple(axes))

    def sum(self, leaf_values: Sequence[jax.Array]) -> dict[str, jax.Array]:
        """Values of every leaf [..., parts] summed into blocks, and into "total"."""
        sums: dict[str, jax.Array] = {}
        for values, names in zip(leaf_values, self.names, strict=True):
            if len(names) > 1:  # of a leaf that nothing reads there may be one zero for all
                values = jnp.broadcast_to(values, (*values.shape[:-1], len(names)))
            if len(set(names)) == 1 and names[0] is not None:
                sums[names[0]] = sums.get(names[0], 0.0) + values.sum(-1)
                continue
            for number, name in enumerate(names):
                if name is not None:
                    sums[name] = sums.get(name, 0.0) + values[..., number]
        total = functools.reduce(operator.add, [values.sum(-1) for values in leaf_values])
        return sums | {TOTAL: total}


def _float_shape(path: str, leaf: Any) -> tuple[int, ...]:
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        raise TypeError(f"params: {path} is {jnp.result_type(leaf)}; gradients need floats")
    return jnp.shape(leaf)


def _function(blocks: BlockOf) -> Callable[[str], str | None]:
    if blocks is None:
        return lambda path: path
    if isinstance(blocks, str) and blocks in (known := dict(layer=layer, module=module, role=role)):
        return known[blocks]
    if not isinstance(blocks, str | re.Pattern):
        return functools.partial(_named, blocks)
    try:
        pattern = re.compile(blocks)
    except re.error as error:
        raise ValueError(f"blocks: {blocks!r} is not a regular expression: {error.msg}") from None

    def name(path):
        match = pattern.search(path)
        if match is None:
            return None
        return next((group for group in match.groups() if group is not None), match[0])

    return name


def _named(blocks: Callable[[str], str | None], path: str) -> str | None:
    """The name that a user's function gives a path, if that is what it is and does."""
    if not callable(blocks):
        raise TypeError(f"blocks must be a name, a regex, a function or None, got {blocks!r}")
    name = blocks(path)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"blocks gives {name!r} for {path!r}: a name is a string, or None")
    return name


def _split_at_layer(path: str) -> tuple[list[str], list[str]]:
    parts = path.split("/")
    if len(parts) > 1 and parts[0] == "params":
        parts = parts[1:]
    numbered = [n for n, part in enumerate(parts) if _NUMBERED.fullmatch(part)]
    end = numbered[0] + 1 if numbered else 1
    return parts[:end], parts[end:]


def _templates(paths: Sequence[str], shapes: Sequence[tuple], scanned: Collection[int]) -> list:
    """The path of every leaf as what stands before and after a layer's number, if it has one."""
    templates: list[tuple[str, ...]] = []
    for path, shape in zip(paths, shapes, strict=True):
        match = _SCANNED.search(path) if shape else None
        split = (
            (f"{path[: match.start()]}{match[1]}{match[2]}s_", path[match.end() :])
            if match
            else (path,)
        )
        templates.append(split)
    others = [n for n in scanned if len(templates[n]) == 1]
    parents = [paths[n].split("/")[:-1] for n in others]
    depth = 0
    while parents and all(len(p) > depth and p[depth] == parents[0][depth] for p in parents):
        depth += 1
    for n in others:
        parts = paths[n].split("/")
        before, after = parts[: max(depth, 1)], parts[max(depth, 1) :]
        templates[n] = ("/".join(before) + "_", "".join(f"/{part}" for part in after))
    return templates


def _each_layer(template: tuple[str, ...], shape: tuple[int, ...]) -> list[str]:
    """The path of each part: of every layer, or of the leaf itself."""
    if len(template) == 1:
        return [template[0]]
    return [f"{template[0]}{number}{template[1]}" for number in range(shape[0])]


def _each_head(path: str, shape: tuple[int, ...], axis: int | None) -> list[str]:
    if axis is None:
        return [path]
    return [f"{path}/head_{number}" for number in range(shape[axis])]
