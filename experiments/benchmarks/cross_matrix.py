"""What does the matrix of all per-example gradient inner products cost, here and elsewhere?

Question  `analysis.alignment.cross_alignment` of a random LLaMA's or GPT-2's next-token gradients,
          rows and columns different examples, against the plain way (all gradients of both sides
          formed in chunks of 8, one product a leaf) and PyTorch's kronfluence (identity strategy)
          and bergson (gradients of its hooks, not projected, one product a layer), alternating in
          one process. PyTorch's tools cover the matrices and biases of linear layers alone, the
          head among them unless it is tied: all agree there. Ours and plain compute the rest too.
Command   python -m experiments.benchmarks.cross_matrix; SmolLM2's shape is --layers=30 --width=576
          --heads=9 --kv_heads=3 --mlp_width=1536 --vocab_size=49152 --tied --scan, one of --ways
          at a time.
Cost      about 3 minutes on 2 CPU cores; kronfluence, bergson, transformers where installed.
Expected  factored faster than all others. By how much depends on the processor (2 quiet cores,
          OMP_WAIT_POLICY=passive, seconds, fastest of 3). 2026-11-28, an AMD EPYC with AVX-512:
          factored 1.45, kronfluence 3.59, plain 1.99, direct 2.88, equal sides 0.95; with torch
          2.14 in place of 2.13 1.54, kronfluence 3.97, bergson 3.13. GPT-2, tied: 1.37, 3.91,
          bergson 2.72. BUILD_NOTES.md has other sizes, processors and SmolLM2's shape (68 s and
          1.3 times the memory of one backward pass).
"""

import dataclasses
import functools
import importlib.util
import tempfile
from collections.abc import Mapping
from typing import Literal

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
OURS = {name: f"cross_alignment, {name}" for name in ("factored", "direct")}
NAMES = OURS | {
    "plain": PLAIN,
    "equal": "factored, rows and columns the same",
    KRONFLUENCE: KRONFLUENCE,
    BERGSON: BERGSON,
    "backward": "one backward pass over all rows",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    family: Literal["llama", "gpt2"] = flag("llama", "Of which the network is.")
    layers: int = flag(4, "Of the network.", 1)
    width: int = flag(256, "Of the residual stream.", 8)
    heads: int = flag(4, "Of attention.", 1)
    kv_heads: int = flag(4, "Of its keys and values.", 1)
    mlp_width: int = flag(1024, "Of the MLP.", 1)
    vocab_size: int = flag(1000, "Tokens.", 2)
    tied: bool = flag(False, "The head's matrix is the embedding's.")
    scan: bool = flag(False, "Compile one layer, for all.")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "Of weights and activations.")
    rows: int = flag(64, "Examples on one side.", 1)
    columns: int = flag(64, "On the other side.", 1)
    length: int = flag(64, "Tokens an example.", 2)
    ways: tuple[Literal[tuple(NAMES)], ...] = flag(
        tuple(NAMES)[:-1], "Contenders; one alone, to see its memory."
    )
    memory_limit: int = flag(2048, "MiB that a tile of ours may take.", 1)
    torch_tile: int = flag(64, "Examples a side whose gradients PyTorch's tools hold.", 1)
    rounds: int = flag(3, "Alternations, the fastest counts; 0: one call, with compilation.", 0)

    def __post_init__(self):
        self.model()
        if self.dtype != "float32" and {KRONFLUENCE, BERGSON} & set(self.ways):
            raise ValueError(f"--dtype={self.dtype} leaves {KRONFLUENCE} and {BERGSON} out: --ways")

    def model(self) -> models.TransformerConfig:
        """Raises ValueError, naming the flag."""
        sizes = dict(
            num_layers=self.layers,
            width=self.width,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            mlp_width=self.mlp_width,
            max_len=self.length,
            tied_head=self.tied,
            scan_layers=self.scan,
            dtype=jnp.dtype(self.dtype),
            param_dtype=jnp.dtype(self.dtype),
        )
        try:
            if self.family == "gpt2":
                return models.gpt2(self.vocab_size, dropout=0.0, **sizes)
            return models.llama(self.vocab_size, rope_scaling=None, **sizes)
        except ValueError as error:
            raise ValueError(f"--width={self.width} --heads={self.heads}: {error}") from None


def time_all(workdir: WorkDir, config: Config, planned: list) -> None:
    """Times, checks that all agree on the linear layers, prints the table."""
    del planned
    model, params, loss, rows, columns = problem(config)
    found: dict[str, np.ndarray] = {}

    def kept(name, call):
        def run():
            found[name] = np.asarray(_matrices(jax.block_until_ready(call()))["linear"])

        return run

    calls = {NAMES[x]: kept(x, call) for x, call in ours(config, params, loss, rows, columns)}
    if "backward" in config.ways:
        backward = jax.jit(jax.grad(lambda params: jax.vmap(loss, (None, 0))(params, rows).sum()))
        calls[NAMES["backward"]] = lambda: jax.block_until_ready(backward(params))
    tools = {
        tool: scores
        for tool, scores in {KRONFLUENCE: _kronfluence, BERGSON: _bergson}.items()
        if tool in config.ways
        and all(map(importlib.util.find_spec, (tool, "torch", "transformers")))
    }
    with tempfile.TemporaryDirectory() as directory:
        if tools:
            models.save_pretrained(directory, model, params)
        for tool, scores in tools.items():
            call = scores(directory, rows, columns, config)
            calls[tool] = kept(tool, lambda call=call: {"linear": call()})
        seconds = common.alternate(calls, config.rounds)
    gigabytes = common.peak_bytes() / 1e9
    where = "of JAX's on the GPU" if jax.default_backend() == "gpu" else "in this process"
    difference = largest_difference(found, loss, params, rows, columns)
    text = (
        f"{table(seconds)}\n\n{config.family} of {config.layers} layers, width {config.width}, MLP "
        f"{config.mlp_width}, {config.vocab_size} tokens; {config.rows} × {config.columns} "
        f"examples of {config.length} tokens; largest difference of an inner product "
        f"{difference:.1e} of the largest. At most {gigabytes:.2f} GB {where}."
    )
    report.write(workdir.path, f"# Cross matrix\n\n{text}", {}, printed=text)


def ours(config: Config, params, loss, rows, columns):
    """Each chosen way that is JAX's, and its call."""
    cross = functools.partial(
        alignment.cross_alignment,
        loss,
        loss,
        params,
        rows,
        blocks=_linear,
        memory_limit=config.memory_limit * 2**20,
    )
    plain = _plain(loss)
    calls = {
        "factored": lambda: cross(examples_rev=columns, method="factored"),
        "direct": lambda: cross(examples_rev=columns, method="direct"),
        "plain": lambda: plain(params, rows, columns),
        "equal": lambda: cross(method="factored"),
    }
    return [(name, call) for name, call in calls.items() if name in config.ways]


def largest_difference(found: Mapping[str, np.ndarray], loss, params, rows, columns) -> float:
    """Of an entry from the plain way's, or the first; of three, from products of gradients."""
    differences = [0.0]
    grad = jax.jit(jax.grad(loss))
    first = found.get("plain", next(iter(found.values()), None))
    for name, x in found.items():
        others = rows if name == "equal" else columns
        largest = np.abs(x).max()
        if name != "equal":
            differences.append(np.abs(x - first).max() / largest)
        for i, j in ((0, -1), (-1, 0), np.unravel_index(np.abs(x).argmax(), x.shape)):
            inner = jax.tree.map(_inner, grad(params, rows[i]), grad(params, others[j]))
            differences.append(abs(_summed(inner)["linear"] - x[i, j]) / largest)
    return float(max(differences))


def table(seconds: dict[str, float]) -> str:
    """Time of each way, and how many times kronfluence, or else the plain way, or the first."""
    reference = next(x for x in (KRONFLUENCE, PLAIN, *seconds) if x in seconds)
    rows = [[way, f"{s:.2f}", f"{seconds[reference] / s:.2f}"] for way, s in seconds.items()]
    return report.table(["way", "seconds", f"times {reference}"], rows)


def problem(config: Config):
    """A random network, a loss of (params, tokens_L), and two sets of examples."""
    model = models.Transformer(config.model())
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
    """The block that PyTorch's tools cover, matrices and biases of linear layers, or the rest."""
    *_, layer, kind = path.split("/")
    is_linear = kind == "kernel" or (kind == "bias" and not layer.endswith("norm"))
    return "linear" if is_linear else "rest"


def _plain(loss):
    """Ten lines of JAX: every gradient of both sides formed."""

    @jax.jit
    def cross(params, rows, columns):
        def flat(tokens_L):
            return jax.tree.map(jnp.ravel, jax.grad(loss)(params, tokens_L))

        left, right = (jax.lax.map(flat, side, batch_size=8) for side in (rows, columns))
        return _summed(jax.tree.map(_product, left, right))

    return cross


def _product(left, right):
    return jnp.matmul(left, right.T, preferred_element_type=jnp.float32)


def _inner(left, right):
    return jnp.vdot(left, right, precision="highest", preferred_element_type=jnp.float32)


def _summed(leaves) -> dict:
    """Block name to the sum over its parameters."""
    found = {"linear": 0.0, "rest": 0.0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
        found[_linear(jax.tree_util.keystr(path, simple=True, separator="/"))] += leaf
    return found


def _kronfluence(directory: str, rows, columns, config: Config):
    """() -> [rows, columns] over the linear layers."""
    import torch
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    _make_linear(model)
    linear = [name for name, x in model.named_modules() if isinstance(x, torch.nn.Linear)]

    class NextToken(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0]).logits[:, :-1].flatten(0, 1)
            targets = batch[0][:, 1:].flatten()
            return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return [name for name in linear if not (config.tied and name == "lm_head")]

    sides = [
        torch.utils.data.TensorDataset(torch.tensor(np.asarray(side, np.int64)))
        for side in (rows, columns)
    ]
    task = NextToken()
    how = dict(cpu=True, disable_tqdm=True, log_level=40, output_dir=f"{directory}/influence")
    analyzer = Analyzer("model", prepare_model(model, task), task, **how)
    num_columns = min(16, config.torch_tile)
    analyzer.fit_all_factors(
        "factors", sides[1], per_device_batch_size=num_columns,
        factor_args=FactorArguments(strategy="identity"), overwrite_output_dir=True,
    )  # fmt: skip

    def scores():
        analyzer.compute_pairwise_scores(
            "scores", "factors", query_dataset=sides[0], train_dataset=sides[1],
            per_device_query_batch_size=min(len(sides[0]), config.torch_tile),
            per_device_train_batch_size=num_columns,
            score_args=ScoreArguments(), overwrite_output_dir=True,
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()

    return scores


def _make_linear(model) -> None:
    """GPT-2's Conv1D, which kronfluence does not know, as the linear layer that it is."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = torch.nn.Linear(*child.weight.shape)
                linear.weight.data = child.weight.data.T.contiguous()
                linear.bias.data = child.bias.data
                setattr(module, name, linear)


def _bergson(directory: str, rows, columns, config: Config):
    """() -> [rows, columns] over the linear layers."""
    import torch
    from bergson.collector.gradient_collectors import TraceCollector
    from bergson.gradients import GradientProcessor
    from transformers import AutoModelForCausalLM

    sides = [torch.tensor(np.asarray(side, np.int64)) for side in (rows, columns)]
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()

    def gradients(side):
        """Module name to [examples, entries]."""
        found = TraceCollector(
            model=model,
            device="cpu",
            dtype=torch.float32,
            processor=GradientProcessor(include_bias=True),
            filter_modules="lm_head" if config.tied else None,
        )
        for tokens in side.split(16):
            with found:
                logits = model(tokens).logits[:, :-1].flatten(0, 1)
                targets = tokens[:, 1:].flatten()
                torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
            model.zero_grad()
        return {name: torch.cat(parts).flatten(1) for name, parts in found.mod_grads.items()}

    def strip(some):
        left = gradients(some)
        products = []
        for others in sides[1].split(config.torch_tile):
            right = gradients(others)
            products.append(sum(left[name] @ right[name].T for name in left))
        return torch.cat(products, 1)

    return lambda: torch.cat([strip(x) for x in sides[0].split(config.torch_tile)]).numpy()


if __name__ == "__main__":
    flags.main("benchmark_cross_matrix", Config, PRESETS, time_all)
