"""Why weights are asymmetric: the bilinear and the one-layer model, solved and simulated.

Question  §3 and §4 of arXiv 2405.04669. Bilinear: does the reverse loss stay while the forward
          loss falls, L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε, and with what ε at each width? One layer:
          does gradient flow follow the closed form, and what breaks the curse?
Command   python -m experiments.training_dynamics --preset=quick|paper
Cost      quick: 8 widths × 5 seeds, about 2 minutes on 2 CPU cores; paper: 20 seeds.
Expected  The one-layer flow agrees with the closed form to 1e-4 and the reverse probability is
          1/M to machine precision. ε falls with the width; each break condition breaks it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from dirasym import metrics, models, objectives, report
from dirasym.analysis import gradient_flow, row_dynamics
from dirasym.analysis.weights import asymmetry
from dirasym.data.relations import LEFT, RIGHT
from dirasym.models.bilinear import random_signs
from dirasym.types import Batch
from experiments import harness
from experiments.flags import flag

PRESETS = {
    "smoke": dict(widths=[16, 256], seeds=[0], vocab_size=16, num_pairs=6, num_times=12),
    "quick": {},
    "paper": dict(seeds=list(range(20)), vocab_size=200, num_pairs=80),
}
CHECKED_STEPS = 20  # of gradient descent, before anything is written
PAIRS = ((2, 3), (4, 5), (6, 7))  # of the one-layer model; tokens 0 and 1 are → and ←
ONE_LAYER_VOCAB = 20
CASES = {  # how the one-layer model trains; what each is in the report
    "one_way": "every pair A → B alone",
    "others_both_ways": "B ← A trains for the other pairs",
    "chain": "A → B and B → C",
    "attends_to_itself": "break: the query attends to itself",
    "symmetric": "break: weights held symmetric",
    "both_ways": "break: every pair trains both ways",
}
WITHIN = 0.01  # of ln M: a reverse loss that has not moved


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    widths: tuple[int, ...] = flag((32, 64, 128, 256, 512, 1024, 2048, 4096), "Of embeddings.")
    seeds: tuple[int, ...] = flag((0, 1, 2, 3, 4), "Of the embeddings: a run each at every width.")
    vocab_size: int = flag(60, "Tokens M of the bilinear model.", 2)
    num_pairs: int = flag(24, "Pairs A → B.", 2)
    both_share: float = flag(0.5, "Share of the pairs that train in both directions.", 0)
    final_loss: float = flag(1e-3, "Forward loss to reach, in nats.", 0)
    num_times: int = flag(80, "Times looked at, log spaced.", 2)
    step_size: float = flag(1.0, "Of gradient descent, compared with the flow.", 0)

    def __post_init__(self):
        if self.vocab_size < 2 * self.num_pairs:
            raise ValueError(
                f"--vocab_size={self.vocab_size} has no room for {self.num_pairs} pairs"
            )
        if not 0 <= self.both_share < 1 or self.num_both == self.num_pairs:
            raise ValueError(
                f"--both_share={self.both_share} of {self.num_pairs} pairs leaves no reverse to ask"
            )
        if min(self.widths) < 1:
            raise ValueError(f"--widths must be positive, got {min(self.widths)}")
        if not 0 < self.final_loss < np.log(self.vocab_size):
            raise ValueError("--final_loss must be in (0, ln vocab_size), the loss at the start")
        if self.step_size <= 0:
            raise ValueError(f"--step_size must be positive, got {self.step_size}")
        descend(self, CHECKED_STEPS)

    @property
    def num_both(self) -> int:
        """Pairs that train in both directions: the first."""
        return round(self.both_share * self.num_pairs)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens A and tokens B of every pair."""
        return np.arange(self.num_pairs), np.arange(self.num_pairs, 2 * self.num_pairs)


def bilinear(config: Config, width: int, seed: int) -> gradient_flow.BilinearFlow:
    """The bilinear model on its training pairs."""
    a_P, b_P = config.pairs()
    both = slice(config.num_both)
    embed_VD = np.asarray(random_signs(jax.random.key(seed), (config.vocab_size, width)), float)
    return gradient_flow.BilinearFlow(
        gram_VV=embed_VD @ embed_VD.T,
        context_E=np.concatenate([a_P, b_P[both]]),
        target_E=np.concatenate([b_P, a_P[both]]),
    )


def descend(config: Config, num_steps: int) -> np.ndarray:
    """Gradient descent at the smallest width, whose embeddings overlap most: C at every step.

    Raises:
      ValueError: the step size diverges; names the stability bound.
    """
    model = bilinear(config, min(config.widths), config.seeds[0])
    start_VV = np.zeros(model.gram_VV.shape)
    try:
        return gradient_flow.descend(
            model.field, model.loss, start_VV, step_size=config.step_size, num_steps=num_steps
        )
    except gradient_flow.UnstableStepError as error:
        raise ValueError(f"--step_size: {error}") from None


def run(experiment: harness.Experiment, config: Config) -> None:
    """Solves what is missing, then reports."""
    for width in config.widths:
        for seed in config.seeds:
            if not experiment.is_done(part="bilinear", width=width, seed=seed):
                record(experiment, f"width{width}-seed{seed}", *solve_bilinear(config, width, seed))
    for case in CASES:
        if not experiment.is_done(part="one_layer", case=case):
            record(experiment, case, *solve_one_layer(case))
    if not experiment.is_done(part="descent"):
        record(experiment, "descent", *compare_descent(config))
    write_report(experiment, config)


def record(experiment: harness.Experiment, name: str, line: dict, curves: dict) -> None:
    """Curves first, so that a line means that they are there."""
    experiment.save_curves(name, curves)
    experiment.record([line], keys=("part", "case", "width", "seed"))


def solve_bilinear(config: Config, width: int, seed: int) -> tuple[dict, dict]:
    """Flow until the forward loss is `final_loss`."""
    model = bilinear(config, width, seed)
    a_P, b_P = (x[config.num_both :] for x in config.pairs())
    predicted = row_dynamics.time_to_loss(
        config.final_loss, config.vocab_size, 1 / len(model.target_E)
    )
    # Crowded embeddings take longer than orthonormal ones, for which the time is exact.
    times = np.append(0, predicted * np.logspace(-6, 2, config.num_times))
    c_TVV = gradient_flow.flow(model.field, np.zeros(model.gram_VV.shape), times)
    logits_TVV = model.logits(c_TVV)
    loss_T = gradient_flow.pair_loss(logits_TVV, model.context_E, model.target_E)
    reached_T = loss_T <= config.final_loss
    end = int(reached_T.argmax()) if reached_T.any() else len(times) - 1
    keep = slice(end + 1)
    reverse_T = gradient_flow.pair_loss(logits_TVV, b_P, a_P)[keep]
    loss_T = loss_T[keep]
    final_VV = logits_TVV[end]
    line = {
        "part": "bilinear",
        "width": width,
        "seed": seed,
        "reached": bool(reached_T.any()),
        "loss": float(loss_T[-1]),
        "reverse_loss": float(reverse_T[-1]),
        "epsilon": gradient_flow.smallest_exponent(loss_T, reverse_T),
        "reverse_deviation": float(np.abs(reverse_T / np.log(config.vocab_size) - 1).max()),
        "asymmetry": float(asymmetry(final_VV[np.ix_(a_P, b_P)], final_VV[np.ix_(b_P, a_P)])),
        "time": float(np.interp(-np.log(config.final_loss), -np.log(loss_T), times[keep])),
        "predicted_time": float(predicted),
    }
    tokens = np.concatenate([a_P, b_P])
    curves = {
        "time": times[keep],
        "loss": loss_T,
        "reverse_loss": reverse_T,
        "weights": final_VV[np.ix_(tokens, tokens)],
    }
    return line, curves


def compare_descent(config: Config) -> tuple[dict, dict]:
    """Gradient descent beside the flow that it approximates, until half of the loss is gone."""
    model = bilinear(config, min(config.widths), config.seeds[0])
    half = np.log(config.vocab_size) / 2
    time = row_dynamics.time_to_loss(half, config.vocab_size, 1 / len(model.target_E))
    num_steps = max(1, round(float(time) / config.step_size))
    times = config.step_size * np.arange(num_steps + 1)
    steps_TVV = descend(config, num_steps)
    flow_TVV = gradient_flow.flow(model.field, np.zeros(model.gram_VV.shape), times)
    descent_T, flow_T = (
        gradient_flow.pair_loss(model.logits(x), model.context_E, model.target_E)
        for x in (steps_TVV, flow_TVV)
    )
    line = {
        "part": "descent",
        "step_size": config.step_size,
        "num_steps": num_steps,
        "largest_difference": float(np.abs(descent_T - flow_T).max()),
    }
    return line, {"time": times, "loss": descent_T, "flow_loss": flow_T}


def one_layer_sentences(case: str) -> list[tuple[int, int, int]]:
    """Three-token sentences. The first pair is the one asked in reverse."""
    forward = [(a, RIGHT, b) for a, b in PAIRS]
    reverse = [(b, LEFT, a) for a, b in PAIRS]
    if case == "chain":
        return [*forward, *((b, RIGHT, b + 6) for _, b in PAIRS)]
    if case in ("one_way", "symmetric"):
        return forward
    return forward + (reverse if case == "both_ways" else reverse[1:])


def solve_one_layer(case: str) -> tuple[dict, dict]:
    """Flow of Y and Z (or of Θ held symmetric) over five orders of magnitude in time."""
    sentences_EL = np.array(one_layer_sentences(case))
    times = np.append(0, np.logspace(-1, 4, 51))
    if case == "symmetric":
        bilinear_flow = gradient_flow.BilinearFlow(
            np.eye(ONE_LAYER_VOCAB), sentences_EL[:, 0], sentences_EL[:, 2], symmetric=True
        )
        c_TVV = gradient_flow.flow(bilinear_flow.field, np.zeros((ONE_LAYER_VOCAB,) * 2), times)
        weights = {"Y": bilinear_flow.logits(c_TVV), "Z": np.zeros(1)}
    else:
        model = models.ReparameterisedAttention(ONE_LAYER_VOCAB, case == "attends_to_itself")
        num = len(sentences_EL)
        batch = Batch(sentences_EL, np.arange(num), num, np.arange(3)[None] == np.full((num, 1), 2))

        def loss(params):
            apply_fn = models.make_tokens_apply_fn(model)
            total, count, _ = objectives.next_token(apply_fn, params, batch)
            return total / count

        start = model.init(jax.random.key(0), sentences_EL)["params"]
        weights = gradient_flow.flow(gradient_flow.negative_gradient(loss), start, times)

    def probability_T(context: int, relation: int, target: int):
        if case != "attends_to_itself":
            return scipy.special.softmax(weights["Y"][:, context], axis=-1)[:, target]
        with jax.enable_x64(True):
            prompt = jnp.array([[context, relation]])
            logits_TV = jax.vmap(lambda p: model.apply({"params": p}, prompt)[0, -1])(weights)
            return np.asarray(jax.nn.softmax(logits_TV))[:, target]

    a, b = PAIRS[0]
    forward_T, reverse_T = probability_T(a, RIGHT, b), probability_T(b, LEFT, a)
    rate = 1 / len(sentences_EL)
    exact_T = row_dynamics.row_probability(times, ONE_LAYER_VOCAB, rate)
    curves = {"time": times, "forward": forward_T, "reverse": reverse_T, "closed_form": exact_T}
    gap_T = weights["Y"][:, a, b] - weights["Y"][:, a, -1]
    line = {
        "part": "one_layer",
        "case": case,
        "forward": float(forward_T[-1]),
        "reverse": float(reverse_T[-1]),
        "reverse_deviation": float(np.abs(reverse_T * ONE_LAYER_VOCAB - 1).max()),
        "probability_error": float(np.abs(forward_T - exact_T).max()),
        "gap_error": float(
            np.abs(gap_T - row_dynamics.row_gap(times, ONE_LAYER_VOCAB, rate)).max()
        ),
        "largest_z": float(np.abs(weights["Z"]).max()),
    }
    if case == "chain":
        curves["composed"] = probability_T(a, RIGHT, b + 6)
        exact_T = (1 - exact_T) / (ONE_LAYER_VOCAB - 1)
        line["composed"] = float(curves["composed"][-1])
        line["composed_error"] = float(np.abs(curves["composed"] - exact_T).max())
    return line, curves | {"weights": weights["Y"][-1]}


# ---------------------------------------------------------------------------------------
# Report


def write_report(experiment: harness.Experiment, config: Config) -> None:
    """Writes figures and report.md, and prints the tables and the figures' paths."""
    results = experiment.results()

    def curves(name):
        with np.load(experiment.workdir / "curves" / f"{name}.npz") as file:
            return dict(file)

    runs = {
        (width, seed): curves(f"width{width}-seed{seed}")
        for width in config.widths
        for seed in config.seeds
    }
    cases = {case: curves(case) for case in CASES}
    figures = experiment.workdir / "figures"
    paths = [
        report.save_figure(_loss_figure(config, runs), figures, "bilinear_losses"),
        report.save_figure(_width_figure(config, results), figures, "bilinear_widths"),
        report.save_figure(_one_layer_figure(cases), figures, "one_layer"),
        report.save_figure(_break_figure(cases), figures, "break_conditions"),
        report.save_figure(_weight_figure(config, runs, cases), figures, "weights"),
    ]
    (descent,) = report.select(results, part="descent")
    text = "\n\n".join(
        [
            "# Training dynamics (arXiv 2405.04669, §3 and §4)",
            f"Bilinear model: M = {config.vocab_size} tokens, {config.num_pairs} pairs of which "
            f"{config.num_both} train both ways; gradient flow until the loss is "
            f"{config.final_loss:g}. ε: the smallest with L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε. Mean "
            f"over {len(config.seeds)} embeddings ± 95 % Student interval.",
            _bilinear_table(config, results),
            within_sentence(config, results),
            f"One-layer model, M = {ONE_LAYER_VOCAB}: largest differences from the closed form, "
            "and of M·p(A | B) from 1, over times 0 and 0.1 to 10⁴. Break conditions follow "
            "other laws.",
            _one_layer_table(results),
            f"Gradient descent at step size {descent['step_size']:g}, width "
            f"{min(config.widths)}: its loss is within {descent['largest_difference']:.2g} nats "
            f"of the flow's over {descent['num_steps']} steps.",
        ]
    )
    experiment.write_report(text, paths, printed=text)


def within_sentence(config: Config, results) -> str:
    """From which width on every seed's reverse loss stays within 1 % of ln M."""
    moved = [
        width
        for width in config.widths
        if max(r["reverse_deviation"] for r in _at(results, width)) > WITHIN
    ]
    enough = [width for width in config.widths if width > max(moved, default=0)]
    if not enough:
        return f"At no width here does the reverse loss stay within {WITHIN:.0%} of ln M."
    return (
        f"From width {min(enough)} on the reverse loss stays within {WITHIN:.0%} of ln M "
        "throughout, at every seed."
    )


def _at(results, width: int):
    return report.select(results, part="bilinear", width=width)


def _bilinear_table(config: Config, results) -> str:
    columns = {
        "ε": ("epsilon", 4),
        "final L": ("loss", 5),
        "final L_rev": ("reverse_loss", 3),
        "max |L_rev / ln M − 1|": ("reverse_deviation", 4),
        "asymmetry": ("asymmetry", 3),
    }
    rows = []
    for width in config.widths:
        lines = _at(results, width)
        values = [
            report.with_interval(*metrics.student_interval([r[key] for r in lines]), digits)
            for key, digits in columns.values()
        ]
        slower = np.mean([r["time"] / r["predicted_time"] for r in lines])
        missed = sum(not r["reached"] for r in lines)
        rows.append([width, *values, "not reached" if missed else f"{slower:.2f}"])
    return report.table(["width", *columns, "time / predicted"], rows)


def _one_layer_table(results) -> str:
    header = ["case", "p(B|A)", "error", "gap error", "p(A|B)", "max |M·p(A|B) − 1|", "max |Z|"]
    rows = []
    for case, label in CASES.items():
        (line,) = report.select(results, part="one_layer", case=case)
        follows = not label.startswith("break") or case == "both_ways"
        rows.append(
            [
                label,
                f"{line['forward']:.5f}",
                f"{line['probability_error']:.1e}" if follows else "",
                f"{line['gap_error']:.1e}" if follows else "",
                f"{line['reverse']:.5f}",
                f"{line['reverse_deviation']:.1e}",
                f"{line['largest_z']:.1e}",
            ]
        )
    (chain,) = report.select(results, part="one_layer", case="chain")
    return (
        report.table(header, rows)
        + f"\n\nIn the chain p(C|A) ends at {chain['composed']:.1e}, and is (1 − p(B|A))/(M − 1) "
        f"to {chain['composed_error']:.1e}."
    )


def _loss_figure(config: Config, runs):
    shown = [config.widths[0], config.widths[len(config.widths) // 2], config.widths[-1]]
    figure, axes = report.new_figure(1, len(shown), (3.6, 3.0))
    for ax, width in zip(axes[0], shown, strict=True):
        for seed in config.seeds:
            c, first = runs[width, seed], seed == config.seeds[0]
            for key, color in (("loss", "tab:blue"), ("reverse_loss", "tab:red")):
                label = {"loss": "forward", "reverse_loss": "reverse"}[key] if first else None
                ax.plot(c["time"], c[key], color=color, label=label, lw=1)
        ax.axhline(np.log(config.vocab_size), color="black", ls=":", label="ln M")
        ax.set(title=f"width {width}", xscale="log", yscale="log", xlabel="time", ylabel="nats")
        ax.set_xlim(left=1)
        ax.legend(fontsize="small")
    return figure


def _width_figure(config: Config, results):
    figure, axes = report.new_figure(1, 3, (3.6, 3.0))
    for ax, key, label in zip(
        axes[0],
        ("epsilon", "reverse_deviation", "asymmetry"),
        ("smallest ε", "max |L_rev / ln M − 1|", "asymmetry of the untrained pairs"),
        strict=True,
    ):
        seeds_WS = np.array([[r[key] for r in _at(results, w)] for w in config.widths])
        mean, half_width = np.array([metrics.student_interval(x) for x in seeds_WS]).T
        error = None if np.isnan(half_width).any() else half_width
        ax.errorbar(config.widths, mean, error, marker="o", capsize=3)
        ax.plot(config.widths, seeds_WS, "k.", ms=3, alpha=0.5)
        ax.set(xscale="log", xlabel="width", ylabel=label)
        if key != "asymmetry":
            ax.set(yscale="log")
    axes[0, 1].axhline(WITHIN, color="black", ls=":", label="1 %")
    axes[0, 1].legend()
    return figure


def _one_layer_figure(cases):
    figure, axes = report.new_figure(1, 2, (4.4, 3.2))
    chain, left, right = cases["chain"], axes[0, 0], axes[0, 1]
    time = chain["time"][1:]
    curves = {
        "p(B|A)": (chain["forward"], chain["closed_form"]),
        "p(C|A)": (chain["composed"], (1 - chain["closed_form"]) / (ONE_LAYER_VOCAB - 1)),
        "p(A|B), untrained": (cases["one_way"]["reverse"], np.full(len(time) + 1, 0.05)),
    }
    for label, (flow_T, exact_T) in curves.items():
        (line,) = left.plot(time, flow_T[1:], "o", ms=3, label=label)
        left.plot(time, exact_T[1:], color=line.get_color())
        right.plot(time, np.abs(flow_T - exact_T)[1:], color=line.get_color(), label=label)
    left.set(xscale="log", yscale="log", xlabel="time", ylabel="probability")
    left.set_title("flow (points), closed form (lines)")
    left.legend(fontsize="small")
    right.axhline(1e-4, color="black", ls=":")
    right.set(xscale="log", yscale="log", xlabel="time", ylabel="|flow − closed form|")
    return figure


def _break_figure(cases):
    figure, axes = report.new_figure(1, 1, (5.2, 3.4))
    for case, c in cases.items():
        if case != "chain":
            style = "-" if CASES[case].startswith("break") else "--"
            axes[0, 0].plot(c["time"][1:], c["reverse"][1:], style, label=CASES[case])
    axes[0, 0].axhline(1 / ONE_LAYER_VOCAB, color="black", ls=":", label="1/M")
    axes[0, 0].set(xscale="log", yscale="log", xlabel="time", ylabel="p(A | B) of the asked pair")
    axes[0, 0].legend(fontsize="x-small")
    return figure


def _weight_figure(config: Config, runs, cases):
    """Weight from each context (row) to each next token (column)."""
    shown = {
        f"bilinear, width {config.widths[0]}": runs[config.widths[0], config.seeds[0]],
        f"bilinear, width {config.widths[-1]}": runs[config.widths[-1], config.seeds[0]],
        "one layer, one way": cases["one_way"],
        "one layer, symmetric": cases["symmetric"],
    }
    figure, axes = report.new_figure(1, len(shown), (3.4, 3.0))
    for ax, (title, c) in zip(axes[0], shown.items(), strict=True):
        limit = np.abs(c["weights"]).max()
        image = ax.imshow(c["weights"], cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(title=title, xlabel="next token", ylabel="context token")
        ax.grid(False)
        figure.colorbar(image, ax=ax)
    return figure


if __name__ == "__main__":
    harness.main("training_dynamics", Config, PRESETS, run)
