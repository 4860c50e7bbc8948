"""Public functions that take wrong shapes or ranges without a word and return numbers."""

import functools

import jax
import jax.numpy as jnp
from _common import end

from dirasym import decoding, intervals, models, objectives, training
from dirasym.analysis import excess, weights
from dirasym.compile import compile_scan
from dirasym.data import batching
from dirasym.rows import PerRow
from dirasym.types import Batch

key, tok = jax.random.key(0), jnp.zeros((2, 4), int)
config = models.radd(10, width=8, num_heads=2, num_layers=1)
m = models.Transformer(config)
p = m.init(key, tok)["params"]
f = models.make_apply_fn(m)
md = functools.partial(objectives.masked_diffusion, mask_id=9)
one_row = {"tokens_BL": tok, "scored_BL": jnp.ones((1, 4), bool)}
bad = []


def check(name, call):
    try:
        r = call()
        bad.append(name)
        print("returned:", name, "->", str(r).replace("\n", " ")[:70])
    except (ValueError, AssertionError) as e:
        print("raised:", name, type(e).__name__, str(e).strip().splitlines()[0][:90])


check(
    "clean_loss: 1 row of scored_BL",
    lambda: excess.clean_loss(md, f, p, one_row, key, batch_size=2),
)
check(
    "clean_loss: batch_size=0",
    lambda: excess.clean_loss(md, f, p, {"tokens_BL": tok}, key, batch_size=0),
)


def scan():
    state = training.create_state(f, p, training.make_optimizer(1e-3), key)
    step = functools.partial(training.train_step, objective=md)
    return compile_scan(step, num_steps=1, batch_size=2)(state, one_row)[1]


check("compile_scan: 1 row of scored_BL", scan)
check("apply_fn: valid_BL [3, 3]", lambda: f(p, tok, valid_BL=jnp.ones((3, 3), bool)).shape)
check("apply_fn: rows_R [3, 3]", lambda: f(p, tok, rows_R=jnp.ones((3, 3), int)).shape)
check("masked_diffusion: global_size=0", lambda: md(f, p, Batch(tok, jnp.arange(2), 0), key)[0])
check("masked_diffusion: 3 indices", lambda: md(f, p, Batch(tok, jnp.arange(3), 3), key)[0])
check("batch_at: step=-1", lambda: batching.batch_at(tok, key, -1, 2))
for length in (-1, 5):
    check(
        f"left_to_right: prompt_length={length}",
        lambda length=length: decoding.left_to_right(
            f, p, tok, key, prompt_length=length, bos_id=0, top_k=1
        ),
    )
for k in (0, 11):
    check(
        f"left_to_right: top_k={k}",
        lambda k=k: decoding.left_to_right(f, p, tok, key, prompt_length=1, bos_id=0, top_k=k),
    )
check("student_interval: level=1.5", lambda: intervals.student_interval([1, 2], 1.5))
check("wilson_interval: level=-1", lambda: intervals.wilson_interval(1, 2, -1))
check("bootstrap_interval: level=0", lambda: intervals.bootstrap_interval([1, 2], level=0))
check("weights.gap: 2 x 3", lambda: weights.gap(jnp.ones((2, 3))))
sizes = dict(vocab_size=10, num_layers=1, width=8, num_heads=2, causal=True)
for k, v in (("embed_std", -1.0), ("rope_base", -1.0), ("norm_eps", -1.0), ("dropout", 1.5)):
    check(
        f"TransformerConfig({k}={v})",
        lambda k=k, v=v: models.TransformerConfig(**sizes, **{k: v}).width,
    )
check("PerRow(-1)", lambda: PerRow(-1))
for share in (-1.0, 0.0, 1.5, float("nan")):
    check(
        f"next_token: capacity={share}",
        lambda s=share: objectives.next_token(f, p, Batch(tok, jnp.arange(2), 2), capacity=s)[0],
    )
for more in (
    {"learning_rate": float("nan")},
    {"learning_rate": -1.0},
    {"b1": 2.0},
    {"b2": -0.5},
    {"weight_decay": float("nan")},
    {"clip_norm": -1.0},
):
    check(
        f"make_optimizer({more})",
        lambda more=more: training.make_optimizer(**{"learning_rate": 1e-3} | more),
    )
check(
    "create_state: an average without a decay",
    lambda: training.train_step(
        training.create_state(f, p, training.make_optimizer(1e-3), key, ema=True),
        Batch(tok, jnp.arange(2), 2),
        objective=md,
    ),
)
end(bad, f"{len(bad)}")
