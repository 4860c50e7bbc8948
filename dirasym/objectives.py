"""Training objectives, as free functions of an `ApplyFn`: next token, parallel, diffusion, masked.

Every objective is called as

    (sum, count, aux) = objective(apply_fn, params, batch, key, rngs=rngs)

with `sum` in nats and `count` in the unit that its docstring states, both scalars that
add over devices and microbatches: the loss is the total sum over the total count, never
a mean of means. `aux` is a dict of further scalars that add the same way. `key` is the
step's noise key; `rngs` goes to the model (dropout). Settings are keywords, to be bound
with `functools.partial`.

Most want the logits of some positions alone: `capacity` (see `rows`) is how many are computed.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from dirasym import keys, rows
from dirasym.precision import widened
from dirasym.rows import Capacity, PerRow, check_clean, check_mask_id, check_read, read_at, reading
from dirasym.types import ApplyFn, Array, Batch, Params, Rngs

Scalars = dict[str, jax.Array]
Sums = tuple[jax.Array, jax.Array, Scalars]
Objective = Callable[..., Sums]


def token_nll(logits: jax.Array, tokens: Array, excluded_id: int | None = None) -> jax.Array:
    """-log softmax(logits)[token] in nats: [..] from logits [.., V] and tokens [..].

    `excluded_id` gets probability 0. float32, or what is wider of the logits.
    """
    logits = exclude(widened(logits), excluded_id)
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(tokens))


def exclude(logits: jax.Array, token_id: int | None) -> jax.Array:
    """Logits [.., V] with one token made impossible; unchanged for None."""
    if token_id is None:
        return logits
    is_excluded_V = jnp.arange(logits.shape[-1]) == token_id
    return jnp.where(is_excluded_V.reshape((1,) * (logits.ndim - 1) + (-1,)), -jnp.inf, logits)


def next_token(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: jax.Array | None = None,
    *,
    bos_id: int | None = None,
    capacity: Capacity = None,
    rngs: Rngs | None = None,
) -> Sums:
    """Autoregressive cross-entropy: -Σ_l log p(x_l | x_<l) over the scored tokens.

    With `bos_id` the model reads BOS, x_0, .., x_{L-2} and every token can be scored;
    without it the first token is only read.

    Returns:
      sum: nats. count: scored tokens. aux: {}. Raises ValueError if the model has no such BOS.
    """
    del key
    _, _, scored_BL, _ = _shifted(batch, bos_id)
    nll_BL = next_token_nll(apply_fn, params, batch, bos_id=bos_id, capacity=capacity, rngs=rngs)
    return jnp.sum(nll_BL), jnp.sum(scored_BL).astype(jnp.float32), {}


def next_token_nll(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    bos_id: int | None = None,
    capacity: Capacity = None,
    rngs: Rngs | None = None,
) -> jax.Array:
    """The terms of `next_token` in nats, 0 for what is not scored: [B, L], without BOS [B, L-1].

    Rows with padding have their tokens moved to the left end first, and the terms with them.
    """
    inputs_BL, targets_BL, scored_BL, valid_BL = _shifted(batch, bos_id)
    return read_at(
        *(reading("bos_id", bos_id, apply_fn, token_nll), apply_fn, params),
        *(inputs_BL, scored_BL, targets_BL),
        **dict(capacity=capacity, valid_BL=valid_BL, rngs=rngs),
    )


def _shifted(batch: Batch, bos_id: int | None):
    """What a causal model reads, its targets, which are scored, and what is valid to read."""
    check_read("bos_id", bos_id, None)
    tokens_BL, scored_BL = jnp.asarray(batch.tokens_BL), scored_tokens(batch)
    valid_BL = batch.valid_BL
    if valid_BL is not None:  # a token follows the one before it, and none follows padding
        order_BL = jnp.argsort(~jnp.asarray(valid_BL), axis=1)
        tokens_BL, scored_BL, valid_BL = (
            jnp.take_along_axis(jnp.asarray(x), order_BL, axis=1)
            for x in (tokens_BL, scored_BL, valid_BL)
        )
        valid_BL = valid_BL[:, :-1]
    if bos_id is None and tokens_BL.shape[1] < 2:
        raise ValueError("next_token scores nothing in rows of one token: give a bos_id")
    if bos_id is None:
        return tokens_BL[:, :-1], tokens_BL[:, 1:], scored_BL[:, 1:], valid_BL
    if valid_BL is not None:
        valid_BL = jnp.pad(valid_BL, ((0, 0), (1, 0)), constant_values=True)
    return rows.behind(bos_id, tokens_BL), tokens_BL, scored_BL, valid_BL


def parallel_target(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: jax.Array | None = None,
    *,
    mask_id: int,
    capacity: Capacity = None,
    rngs: Rngs | None = None,
) -> Sums:
    """All scored tokens at once: -Σ_l log p(x_l | the tokens that are not scored).

    The scored tokens are hidden behind `mask_id`, which itself gets probability 0. A model that
    does not say how many tokens it has, and never reads those positions, may lack that token.
    The least loss is the sum of the tokens' own entropies, not that of their joint law.

    Returns:
      sum: nats. count: scored tokens. aux: {}. Raises ValueError as denoising_nll.
    """
    del key
    scored_BL = scored_tokens(batch)
    nll_BL = denoising_nll(
        *(apply_fn, params, batch, scored_BL, scored_BL, mask_id, capacity, rngs),
        noise_B=jnp.ones(len(scored_BL)),
        known_mask=False,
    )
    return jnp.sum(nll_BL), jnp.sum(scored_BL).astype(jnp.float32), {}


def linear_schedule(t: jax.Array) -> jax.Array:
    """λ(t) = t, the log-linear noise of RADD and MDLM: σ(t) = -log(1 - t)."""
    return t


def llada_schedule(t: jax.Array) -> jax.Array:
    """λ(t) = (1 - ε)t + ε with ε = 10⁻³, LLaDA's noise: no level below ε (Nie et al., 2025)."""
    return (1 - 1e-3) * t + 1e-3


def cosine_schedule(t: jax.Array) -> jax.Array:
    """λ(t) = 1 - cos(πt/2), in the form 2 sin²(πt/4) that keeps its digits near 0."""
    return 2 * jnp.sin(jnp.pi * t / 4) ** 2


def masked_diffusion(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    mask_id: int,
    weighting: Literal["lambda", "t", "k"] = "lambda",
    schedule: Callable[[jax.Array], jax.Array] = linear_schedule,
    stratified: bool = True,
    per_token: bool = False,
    capacity: Capacity = None,
    rngs: Rngs | None = None,
) -> Sums:
    """Masked diffusion's denoising cross-entropy (DCE) in one of three forms of one expectation.

    Per example with n noisable tokens, of which the set M is replaced by [M]:

        "lambda"  λ ~ U(0, 1], each token in M with probability λ;   (1/λ) Σ_M -log p(x_i | x^M)
        "t"       t ~ U(0, 1], λ = schedule(t);                (λ'(t)/λ(t)) Σ_M -log p(x_i | x^M)
        "k"       k ~ U{1..n}, M a uniform k-subset;                 (n/k) Σ_M -log p(x_i | x^M)

    (Ou et al., 2025: λ-DCE, t-DCE, and k-DCE, which is the any-order autoregressive loss.)
    A set of k of n tokens weighs (k-1)!(n-k)!/n! in each, if `schedule` runs from 0 to 1, as
    `linear_schedule` and `cosine_schedule` do and `llada_schedule` all but does.
    `stratified` deals the examples of the global batch that are there (`batch.size_B`) one each
    of as many equal cells of (0, 1], in an order drawn with `key`, and draws a level in each cell.
    An example's level is uniform as before; the variance of their mean is less.
    The mask token itself gets probability 0 everywhere. With `per_token` an example's sum is
    divided by how many tokens it scores, as LLaDA's fine-tuning divides by the answer's length.

    Only `batch.noised_BL` tokens are ever replaced (`scored_BL` when that is None), and only
    tokens both replaced and scored enter the sum. With `batch.unit_BL` the noised tokens of a
    unit (a name, say) are hidden together or not at all, with the probability of the level; they
    are then predicted independently of one another, and the sum is no bound on -log p(x). A model
    that takes `noise_B` is told λ ("k": k/n).

    Returns:
      sum: nats, weighted. count: examples with a scored token, so the loss is nats per
      sequence. aux: "tokens", how many were predicted; "token_nll", their unweighted nats.

    Raises:
      ValueError: an unknown weighting, "k" with units, an empty global batch, or as denoising_nll.
    """
    if batch.global_size < 1:
        raise ValueError(f"global_size must be positive, got {batch.global_size}")
    scored_BL, noised_BL = scored_tokens(batch), _noised(batch)
    uniform_B, place_BL = uniforms(batch, example_keys(batch, key))
    if batch.unit_BL is not None:
        if weighting == "k":
            raise ValueError("weighting 'k' counts tokens, and cannot hide units of several")
        unit_BL = jnp.asarray(batch.unit_BL)
        place_BL = jnp.take_along_axis(place_BL, unit_BL, axis=1, mode="clip")
    if stratified:
        uniform_B = _stratified(batch, key, uniform_B)
    masked_BL, weight_B, level_B = corrupt(
        uniform_B, place_BL, noised_BL, weighting=weighting, schedule=schedule
    )
    predicted_BL = masked_BL & scored_BL
    nll_BL = denoising_nll(
        apply_fn, params, batch, masked_BL, predicted_BL, mask_id, capacity, rngs, noise_B=level_B
    )
    count = jnp.sum(jnp.any(scored_BL, axis=1)).astype(jnp.float32)
    if per_token:
        weight_B = weight_B / jnp.maximum(jnp.sum(scored_BL, axis=1), 1)
    aux = {
        "tokens": jnp.sum(predicted_BL).astype(jnp.float32),
        "token_nll": jax.lax.stop_gradient(jnp.sum(nll_BL)),
    }
    return jnp.sum(weight_B * jnp.sum(nll_BL, axis=1)), count, aux


def any_order(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    mask_id: int,
    rngs: Rngs | None = None,
) -> Sums:
    """The chain rule in a random order: -Σ_j log p(x_σ(j) | x_σ(1..j-1)), σ uniform.

    The scored tokens of each example are revealed one by one in its own order σ. The
    expectation is that of `masked_diffusion` in every weighting (Ou et al., 2025), here from
    all n terms: a model whose conditionals belong to one joint law gives -log p(x) itself,
    whatever σ. See `revealing_nll` for its cost; it is meant for evaluation.

    Returns:
      sum: nats. count: examples with a scored token. aux: {}.
    """
    scored_BL = scored_tokens(batch)
    _, place_BL = uniforms(batch, example_keys(batch, key))
    nll_B = revealing_nll(apply_fn, params, batch, place_BL, mask_id, rngs)
    return jnp.sum(nll_B), jnp.sum(jnp.any(scored_BL, axis=1)).astype(jnp.float32), {}


def revealing_nll(apply_fn, params, batch: Batch, place_BL, mask_id: int, rngs=None) -> jax.Array:
    """The chain rule in one order, lowest `place_BL` first: -Σ_j log p(x_σ(j) | x_σ(1..j-1)): [B].

    As many calls of the model as the longest row has scored tokens. No gradient passes.
    """
    scored_BL = scored_tokens(batch)
    rank_BL = jnp.argsort(jnp.argsort(jnp.where(scored_BL, place_BL, jnp.inf), axis=1), axis=1)

    def reveal(rank, total_B):
        hidden_BL, now_BL = (scored_BL & x for x in (rank_BL >= rank, rank_BL == rank))
        nll_BL = denoising_nll(
            *(apply_fn, params, batch, hidden_BL, now_BL, mask_id, PerRow(1), rngs),
            noise_B=jnp.sum(hidden_BL, axis=1) / jnp.maximum(jnp.sum(scored_BL, axis=1), 1),
        )
        return total_B + jnp.sum(nll_BL, axis=1)

    longest = jnp.max(jnp.sum(scored_BL, axis=1))
    return jax.lax.fori_loop(0, longest, reveal, jnp.zeros(len(scored_BL)))


def corrupt(
    uniform_B: jax.Array,
    place_BL: jax.Array,
    noised_BL: jax.Array,
    *,
    weighting: Literal["lambda", "t", "k"] = "lambda",
    schedule: Callable[[jax.Array], jax.Array] = linear_schedule,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masks, weights and noise levels of `masked_diffusion` from uniform draws in (0, 1].

    Args:
      uniform_B: sets the noise level of each example.
      place_BL: ranks its tokens: the smallest are masked.
      noised_BL: which tokens may be masked.

    Returns:
      (masked_BL bool, weight_B float, level_B float: λ, of "k" k/n).
    """
    if weighting == "k":
        size_B = jnp.sum(noised_BL, axis=1, dtype=uniform_B.dtype)
        k_B = jnp.clip(jnp.ceil(uniform_B * size_B), 1, size_B)
        rank_BL = jnp.argsort(jnp.argsort(jnp.where(noised_BL, place_BL, jnp.inf), axis=1), axis=1)
        rank_BL, level_B = rank_BL.astype(k_B.dtype), k_B / jnp.maximum(size_B, 1)
        return (rank_BL < k_B[:, None]) & noised_BL, size_B / jnp.maximum(k_B, 1), level_B
    if weighting == "lambda":
        level_B, weight_B = uniform_B, 1 / uniform_B
    elif weighting == "t":
        level_B, slope_B = jax.jvp(schedule, (uniform_B,), (jnp.ones_like(uniform_B),))
        weight_B = slope_B / level_B
    else:
        raise ValueError(f"weighting must be 'lambda', 't' or 'k', got {weighting!r}")
    return (place_BL <= level_B[:, None]) & noised_BL, weight_B, level_B


def masked_lm(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    mask_id: int,
    rate: float | None = 0.15,
    keep: float = 0.1,
    random: float = 0.1,
    vocab_size: int | None = None,
    capacity: Capacity = None,
    rngs: Rngs | None = None,
) -> Sums:
    """BERT's masked language modelling (Devin et al., 2019): one fixed masking rate, no weights.

    With rate None each row has its own, uniform on (0, 1], dealt out as `masked_diffusion`'s
    levels: MLM-U (arXiv 2406.05183). Each noisable token is selected with probability `rate`; of
    the selected, a share `keep` stays, a share `random` becomes a uniformly random token other
    than [M], and the rest becomes [M]. The sum is -Σ log p(x_i | corrupted x) over what is both
    selected and scored.

    Returns:
      sum: nats. count: selected scored tokens. aux: {}.

    Raises:
      ValueError: shares outside [0, 1], `random` > 0 without a `vocab_size`, or as denoising_nll.
    """
    if not ((rate is None or 0 < rate <= 1) and 0 <= keep and 0 <= random and keep + random <= 1):
        raise ValueError(f"not shares of one: {rate=}, {keep=}, {random=}")
    if random and vocab_size is None:
        raise ValueError("masked_lm needs vocab_size to draw random tokens")
    check_mask_id(mask_id, apply_fn)
    scored_BL, noised_BL = scored_tokens(batch), _noised(batch)
    keys_B = example_keys(batch, key)
    uniform_B, place_BL = uniforms(batch, keys_B)
    rate_B = jnp.full(len(uniform_B), rate) if rate else _stratified(batch, key, uniform_B)
    _, fate_BL = uniforms(batch, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys_B))
    selected_BL = (place_BL <= rate_B[:, None]) & noised_BL
    masked_BL = selected_BL & (fate_BL > keep + random)
    tokens_BL = jnp.asarray(batch.tokens_BL)
    if random and vocab_size is not None:
        num_drawn = vocab_size - (mask_id < vocab_size)
        fresh_B, shape = jax.vmap(jax.random.fold_in, (0, None))(keys_B, 2), tokens_BL.shape[1:]
        drawn_BL = jax.vmap(lambda k: jax.random.randint(k, shape, 0, num_drawn))(fresh_B)
        drawn_BL = _by_token(batch, drawn_BL)
        drawn_BL = jnp.where(drawn_BL >= mask_id, drawn_BL + 1, drawn_BL)
        randomised_BL = selected_BL & (fate_BL > keep) & (fate_BL <= keep + random)
        tokens_BL = jnp.where(randomised_BL, drawn_BL, tokens_BL)
    predicted_BL = selected_BL & scored_BL
    nll_BL = denoising_nll(
        *(apply_fn, params, batch, masked_BL, predicted_BL, mask_id, capacity, rngs, tokens_BL),
        noise_B=rate_B,
    )
    return jnp.sum(nll_BL), jnp.sum(predicted_BL).astype(jnp.float32), {}


def scored_tokens(batch: Batch) -> jax.Array:
    """Tokens whose prediction counts: never padding."""
    fields = (batch.tokens_BL, batch.scored_BL, batch.noised_BL, batch.valid_BL, batch.unit_BL)
    chex.assert_equal_shape([x for x in fields if x is not None])
    given = True if batch.scored_BL is None else batch.scored_BL
    scored_BL = jnp.broadcast_to(jnp.asarray(given), jnp.shape(batch.tokens_BL))
    return scored_BL if batch.valid_BL is None else scored_BL & batch.valid_BL


def _noised(batch: Batch) -> jax.Array:
    """Tokens that may be replaced: never padding, and the scored ones unless told otherwise."""
    if batch.noised_BL is None:
        return scored_tokens(batch)
    noised_BL = jnp.asarray(batch.noised_BL)
    return noised_BL if batch.valid_BL is None else noised_BL & batch.valid_BL


def example_keys(batch: Batch, key: jax.Array) -> jax.Array:
    """A key for each example, that of its index in the global batch: [B]."""
    chex.assert_shape(batch.index_B, jnp.shape(batch.tokens_BL)[:1])
    return jax.vmap(jax.random.fold_in, (None, 0))(keys.threefry(key), jnp.asarray(batch.index_B))


def uniforms(batch: Batch, keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per example one uniform for its level [B] and one per token [B, L], all in (0, 1]."""
    shape = (jnp.shape(batch.tokens_BL)[1] + 1,)
    uniform_BL = 1 - jax.vmap(lambda key: jax.random.uniform(key, shape))(keys_B)
    return uniform_BL[:, 0], _by_token(batch, uniform_BL[:, 1:])


def _by_token(batch: Batch, drawn_BL: jax.Array) -> jax.Array:
    """Draws in the order of an example's tokens, wherever its padding is."""
    if batch.valid_BL is None:
        return drawn_BL
    number_BL = jnp.maximum(jnp.cumsum(batch.valid_BL, axis=1) - 1, 0)
    return jnp.take_along_axis(drawn_BL, number_BL, axis=1)


def _stratified(batch: Batch, key: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """(cell + uniform) / cells, with the cells dealt out among the examples that are there."""
    size = batch.global_size if batch.size_B is None else jnp.maximum(batch.size_B[0], 1)
    index_N = jnp.arange(batch.global_size)
    order_key = jax.random.fold_in(keys.threefry(key), keys.BEYOND)
    draw_N = jax.random.uniform(order_key, index_N.shape)
    cell_N = jnp.argsort(jnp.argsort(jnp.where(index_N < size, draw_N, jnp.inf)))
    cell_B = cell_N[jnp.clip(batch.index_B, 0, size - 1)]
    return (cell_B.astype(uniform_B.dtype) + uniform_B) / jnp.asarray(size, uniform_B.dtype)


def denoising_nll(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    masked_BL: Array,
    predicted_BL: Array,
    mask_id: int,
    capacity: Capacity = None,
    rngs: Rngs | None = None,
    tokens_BL: Array | None = None,
    *,
    noise_B: Array | None = None,
    known_mask: bool = True,
) -> jax.Array:
    """-log p(clean token | sequence with [M] at `masked_BL`) in nats: [B, L].

    0 where nothing is predicted. `tokens_BL` stands in the sequence elsewhere, the clean tokens
    when None. [M] itself gets probability 0. `noise_B` is the level that the model is told.

    Raises:
      ValueError: as `rows.check_clean`; without `known_mask`, of what the model says itself.
    """
    check_clean(batch, mask_id, apply_fn)
    tokens_BL = jnp.asarray(batch.tokens_BL if tokens_BL is None else tokens_BL)
    read: Callable = functools.partial(token_nll, excluded_id=mask_id)
    if known_mask:
        read = reading("mask_id", mask_id, apply_fn, read)
    hidden_BL = jnp.where(masked_BL, mask_id, tokens_BL)
    # A clean [M] would cost infinity where nothing is predicted.
    target_BL = jnp.where(predicted_BL, batch.tokens_BL, 0 if mask_id else 1)
    more = dict[str, Any](capacity=capacity, valid_BL=batch.valid_BL, noise_B=noise_B, rngs=rngs)
    return read_at(read, apply_fn, params, hidden_BL, predicted_BL, target_BL, **more)
