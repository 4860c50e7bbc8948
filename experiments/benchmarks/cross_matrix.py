"""What does the matrix of all per-example gradient inner products cost, here and elsewhere?

Question  `analysis.alignment.cross_alignment` of a random LLaMA's next-token gradients, rows and
          columns different examples, against the plain way (all gradients of both sides formed
          in chunks of 8, one product a leaf) and PyTorch's kronfluence (identity strategy) and
          bergson (gradients of its hooks, not projected, one product a layer), alternating in one
          process. PyTorch's tools cover linear layers alone, the head among them: all agree there.
Command   python -m experiments.benchmarks.cross_matrix
Cost      about 3 minutes on 2 CPU cores; kronfluence, bergson, transformers where installed.
Expected  factored faster than all others. By how much depends on the processor (2 quiet cores,
          OMP_WAIT_POLICY=passive, seconds, fastest of 3). 2026-11-28, an AMD EPYC with AVX-512:
          factored 1.45, kronfluence 3.59, plain 1.99, direct 2.88, equal sides 0.95; with torch
          2.14 in place of 2.13 1.54, kronfluence 3.97, bergson 3.13. At 6 layers of width 192 (MLP
          512, 3,000 tokens, 48 × 96 examples of 96 tokens) 1.85, 4.15, 2.21, 2.27, 0.78; and 1.89,
          4.47, bergson 3.66. The day before, on another: 3.66, kronfluence 4.59, plain 4.23; and
          5.13, 5.61, 5.02. Alone in a process factored took at most 1.5 GB (2.8 at 6 × 192) and
          plain 3.1 (3.0); kronfluence, measured before, 2.2 at the first size.
"""

import dataclasses
import functools
import importlib.util
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import models, report
from dirasym.analysis import alignment
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.benchmarks import common
from experiments.flags import flag

SMALL = dict(layers=1, width=16, mlp_width=32, vocab_size=50, rows=4, columns=5, length=6, rounds=1)
PRESETS = {"smoke": SMALL, "quick": {}, "paper": {}}
KRONFLUENCE, BERGSON = "kronfluence", "bergson"
PLAIN = "plain: chunks of 8, a product a leaf"


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    layers: int = flag(4, "Of the LLaMA.", 1)
    width: int = flag(256, "Of the residual stream: four heads.", 8)
    mlp_width: int = flag(1024, "Of the MLP.", 1)
    vocab_size: int = flag(1000, "Tokens.", 2)
    rows: int = flag(64, "Examples on one side.", 1)
    columns: int = flag(64, "On the other side.", 1)
    length: int = flag(64, "Tokens an example.", 2)
    rounds: int = flag(3, "Alternations; the fastest of each contender counts.", 1)


def time_all(workdir: WorkDir, config: Config, planned: list) -> None:
    """Times, checks that all agree on the linear layers, prints the table."""
    del planned
    model, params, loss, rows, columns = problem(config)
    ours = functools.partial(
        alignment.cross_alignment, loss, loss, params, rows, examples_rev=columns, blocks=_linear
    )
    plain = _plain(loss)
    ways = {
        "cross_alignment, factored": lambda: ours(method="factored"),
        "cross_alignment, direct": lambda: ours(method="direct"),
        PLAIN: lambda: plain(params, rows, columns),
        "factored, rows and columns the same": lambda: alignment.cross_alignment(
            loss, loss, params, rows, method="factored", blocks=_linear
        ),
    }
    results = {
        name: np.asarray(_matrices(call())["linear"]) for name, call in list(ways.items())[:3]
    }
    calls = {name: lambda call=call: jax.block_until_ready(call()) for name, call in ways.items()}
    with tempfile.TemporaryDirectory() as directory:
        models.save_pretrained(directory, model, params)
        for tool, scores in {KRONFLUENCE: _kronfluence, BERGSON: _bergson}.items():
            if all(map(importlib.util.find_spec, (tool, "torch", "transformers"))):
                calls[tool] = scores(directory, rows, columns)
                results[tool] = calls[tool]()
        seconds = common.alternate(calls, config.rounds)
    want = results[PLAIN]
    difference = max(np.abs(x - want).max() for x in results.values())
    text = (
        f"{table(seconds)}\n\nLLaMA of {config.layers} layers, width {config.width}, MLP "
        f"{config.mlp_width}, {config.vocab_size} tokens; {config.rows} × {config.columns} "
        f"examples of {config.length} tokens; largest difference of an inner product "
        f"{difference / np.abs(want).max():.1e} of the largest."
    )
    report.write(workdir.path, f"# Cross matrix\n\n{text}", {}, printed=text)


def table(seconds: dict[str, float]) -> str:
    """Time of each way, and how many times kronfluence, or else the plain way."""
    reference = KRONFLUENCE if KRONFLUENCE in seconds else PLAIN
    rows = [[way, f"{s:.2f}", f"{seconds[reference] / s:.2f}"] for way, s in seconds.items()]
    return report.table(["way", "seconds", f"times {reference}"], rows)


def problem(config: Config):
    """A random LLaMA, a loss of (params, tokens_L), and two sets of examples."""
    model = models.Transformer(
        models.llama(
            config.vocab_size,
            num_layers=config.layers,
            width=config.width,
            num_heads=4,
            num_kv_heads=4,
            mlp_width=config.mlp_width,
            max_len=config.length,
            rope_scaling=None,
        )
    )
    rng = np.random.default_rng(0)
    sides = (
        jnp.asarray(rng.integers(0, config.vocab_size, (n, config.length)), jnp.int32)
        for n in (config.rows, config.columns)
    )
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]

    def loss(params, tokens_L):
        """Next-token cross-entropy in nats, summed over positions."""
        logits_LV = model.apply({"params": params}, tokens_L[None])[0, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits_LV, tokens_L[1:]).sum()

    return model, params, loss, *sides


def _matrices(found):
    return found.inner if isinstance(found, alignment.CrossAlignment) else found


def _linear(path: str) -> str:
    """The block that PyTorch's tools cover, or the rest."""
    return "linear" if path.endswith("kernel") else "rest"


def _plain(loss):
    """Ten lines of JAX: every gradient of both sides formed."""

    @jax.jit
    def cross(params, rows, columns):
        def flat(tokens_L):
            return jax.tree.map(jnp.ravel, jax.grad(loss)(params, tokens_L))

        left, right = (jax.lax.map(flat, side, batch_size=8) for side in (rows, columns))
        found = {"linear": 0.0, "rest": 0.0}
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(_product, left, right)):
            found[_linear(jax.tree_util.keystr(path, simple=True, separator="/"))] += leaf
        return found

    return cross


def _product(left, right):
    return left @ right.T


def _kronfluence(directory: str, rows, columns):
    """() -> [rows, columns] over the linear layers."""
    import torch
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from transformers import AutoModelForCausalLM

    class NextToken(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0]).logits[:, :-1].flatten(0, 1)
            targets = batch[0][:, 1:].flatten()
            return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    sides = [
        torch.utils.data.TensorDataset(torch.tensor(np.asarray(side, np.int64)))
        for side in (rows, columns)
    ]
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    task = NextToken()
    how = dict(cpu=True, disable_tqdm=True, log_level=40, output_dir=f"{directory}/influence")
    analyzer = Analyzer("llama", prepare_model(model, task), task, **how)
    analyzer.fit_all_factors(
        "factors", sides[1], per_device_batch_size=16,
        factor_args=FactorArguments(strategy="identity"), overwrite_output_dir=True,
    )  # fmt: skip

    def scores():
        analyzer.compute_pairwise_scores(
            "scores", "factors", query_dataset=sides[0], train_dataset=sides[1],
            per_device_query_batch_size=len(sides[0]), per_device_train_batch_size=16,
            score_args=ScoreArguments(), overwrite_output_dir=True,
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()

    return scores


def _bergson(directory: str, rows, columns):
    """() -> [rows, columns] over the linear layers."""
    import torch
    from bergson.collector.gradient_collectors import TraceCollector
    from transformers import AutoModelForCausalLM

    sides = [torch.tensor(np.asarray(side, np.int64)) for side in (rows, columns)]
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()

    def gradients(side):
        """Module name to [examples, entries]."""
        found = TraceCollector(model=model, device="cpu", dtype=torch.float32)
        for tokens in side.split(16):
            with found:
                logits = model(tokens).logits[:, :-1].flatten(0, 1)
                targets = tokens[:, 1:].flatten()
                torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
            model.zero_grad()
        return {name: torch.cat(parts).flatten(1) for name, parts in found.mod_grads.items()}

    def scores():
        left, right = map(gradients, sides)
        return sum(left[name] @ right[name].T for name in left).numpy()

    return scores


if __name__ == "__main__":
    flags.main("benchmark_cross_matrix", Config, PRESETS, time_all)
