"""The figures of docs/, drawn from the result lines and curves under docs/results.

Question  none: a run draws its own figures; these are the same code on what is on file, and some
          show more runs than one.
Command   python -m experiments.tools.redraw
Cost      seconds.
Expected  docs/figures as they are on file; what has no curves on file is left as it is.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import histories, report, results
from dirasym.usage import UsageError
from experiments import gradient_alignment, rope_bounds, toy_reversal, toy_study
from experiments import relations as relations_page
from experiments.flags import flag
from experiments.reports import alignment as alignment_report
from experiments.reports import causes as causes_report
from experiments.reports import closure as closure_report
from experiments.reports import cures as cures_report
from experiments.reports import dial as dial_report
from experiments.reports import facts as facts_report
from experiments.reports import patching as patching_report
from experiments.reports import relations as relations_report
from experiments.reports import relations_study as relations_study_report
from experiments.reports import rope_bounds as rope_report
from experiments.reports import toy as toy_report
from experiments.reports import toy_study as toy_study_report
from experiments.reports import training_dynamics as dynamics_report
from experiments.reports import world_a as world_a_report
from experiments.reports import world_a_bits as world_a_bits_report
from experiments.systems import relations, toy, training_dynamics
from experiments.tables import choice
from experiments.tables import closure as closure_tables
from experiments.tables import toy as toy_tables
from experiments.tables import world_a as world_a_tables
from experiments.tools import command

DOCS = pathlib.Path(__file__).parents[2] / "docs"
REVERSE_QUESTIONS = {  # bars, and where their result lines are
    "1 word\n60 both ways": ("facts_names", "w1b60"),
    "2 words\n60": ("facts_names", "w2b60"),
    "2 words\n150": ("facts_names", "w2b150"),
    "2 words\n300": ("facts_names", "w2b300_mdm"),
    "2 words, 60\nnames whole": ("facts_names", "w2b60_names_at_once"),
    "2 words, 300\nnames whole": ("facts_names", "w2b300_names_at_once"),
    "2 words, 300\ncausal": ("facts_names", "w2b300_arm"),
    "SmolLM2\nmasked, LoRA": ("facts_smollm2_h100", "lora_mdm"),
    "SmolLM2\ncausal, LoRA": ("facts_smollm2_h100", "lora_arm"),
    "SmolLM2\nmasked, all": ("facts_smollm2_h100", "full_mdm"),
    "SmolLM2\ncausal, all": ("facts_smollm2_h100", "full_arm"),
}


LEADING = {  # of `causes`: how a figure calls them
    "bidirectional, both": "attention=bidirectional,objective=masked_diffusion,predicted=both",
    "A only": "attention=bidirectional,objective=masked_diffusion,predicted=A",
    "B only": "attention=bidirectional,objective=masked_diffusion,predicted=B",
    "causal, next token": "attention=causal,objective=next_token,predicted=both",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    folder: str = flag(str(DOCS / "figures"), "Where the figures go.", kind="path")


def draw(config: Config) -> None:
    """Draws them and prints their paths."""
    folder = pathlib.Path(config.folder)
    if not folder.is_dir():
        raise UsageError(f"--folder={folder} is no directory")
    for name, figure in figures().items():
        print(report.save_figure(figure(), folder, name))


def figures() -> dict[str, Callable[[], Any]]:
    """What draws each, by name."""
    table_2 = toy.Config(lengths=tuple(toy_reversal.PAPER_TABLE_2), report_step=1000)
    bars = _lines("toy_reversal", "results", "results_L40", "results_arm")
    names = {label: _lines(*place) for label, place in REVERSE_QUESTIONS.items()}
    rope = rope_bounds.Config(**rope_bounds.PRESETS["quick"])
    equal = report.select(_lines("rope_bounds", "results"), what="equal")
    depth = _lines("gradient_alignment", "depth")
    quick = toy.Config(**toy_reversal.PRESETS["quick"])
    longer = dataclasses.replace(quick, lengths=(20,), steps=600, eval_every=200)
    along = {
        (model, 10): stacked("toy_reversal", f"model={model},length=10", quick.seeds)
        for model in quick.models
    }
    by_position = {
        (model, 20): stacked("toy_reversal", f"model={model},length=20", seeds)
        for model, seeds in toy_tables.PANEL_SEEDS.items()
    }
    part = functools.partial
    return {
        "toy_reversal": part(toy_report.training_figure, along, quick, "p"),
        "toy_reverse_panel": part(toy_report.panel_figure, by_position, longer),
        "toy_accuracy": part(toy_report.accuracy_bars, bars, table_2, toy_reversal.PAPER_TABLE_2),
        "toy_seeds": part(seeds_apart, toy_tables.courses()),
        "toy_study": part(study_figure, toy_study.Config().inits),
        "toy_study_3000": part(
            toy_study_report.figure,
            _lines("toy_study", "results_3000_steps"),
            ["default"],
            toy_study.Config().orders,
        ),
        "facts_names": part(reverse_bars, names),
        "rope_bounds": part(rope_report.figure, rope, equal),
        "alignment_depth": part(alignment_report.depth_figure, depth, [10], [1, 2, 4]),
        "alignment_minimal": part(alignment_report.minimal_figure, two_letters("mdm", "arm")),
        "first_order": part(alignment_report.first_order_figure, two_letters("mdm")),
        "alignment_full": part(alignment_report.length_figure, *at_lengths(10, 20)),
        "alignment_full_L40": part(alignment_report.length_figure, *at_lengths(40)),
        "alignment_attention": part(alignment_report.attention_figure, *at_lengths(10, 20, 40)),
        **facts_figures(),
        **study_figures(),
        **dynamics_figures(),
        **relations_figures(),
        **world_a_figures(),
        **cause_figures(),
    }


def study_figure(inits: Sequence[str]):
    """The study of initialisations: the longest run of each and seed."""
    parts = ("results", "results_seed_2", "results_unit", "results_zero_heads")
    longest = {  # the unit embedding was first trained for 1000 steps
        (line["init"], line["seed"]): line
        for line in sorted(_lines("toy_study", *parts), key=lambda line: len(line["loss"]))
    }
    by_seed = sorted(longest.values(), key=lambda line: line["seed"])
    return toy_study_report.figure(by_seed, inits, toy_study.Config().orders)


def two_letters(*models: str) -> dict[tuple, dict]:
    """The curves on file of two letters, attention alone."""
    return {
        ("minimal", model, 2, 1): stacked(
            "gradient_alignment", f"part=minimal,model={model},length=2,layers=1", range(3)
        )
        for model in models
    }


def at_lengths(*lengths: int) -> tuple[dict[tuple, dict], gradient_alignment.Config]:
    """The curves on file of the toy task's encoder at some lengths, and their configuration."""
    curves = {}
    for length in lengths:
        name = f"part=full,model=mdm,length={length},layers=1"
        c = stacked("gradient_alignment", name, range(3), first=("correlation_",))
        curves["full", "mdm", length, 1] = c | {"correlation_total": c["correlation_total"][0]}
    return curves, gradient_alignment.Config(lengths=lengths)


def facts_figures() -> dict[str, Callable[[], Any]]:
    """Facts from scratch, and SmolLM2's, from the curves on file."""
    scratch, causal, masked = (
        {
            facts_report.LABELS[model]: stacked(
                folder, f"data=p2c,model={model}", seeds, ("attention",)
            )
            for model in of
        }
        for folder, of, seeds in (
            ("facts_quick", ("mdm", "arm"), facts_report.PAPER_SEEDS),
            ("facts_smollm2_arm", ("arm",), facts_report.PAPER_SEEDS),
            ("facts_smollm2_mdm", ("mdm",), (1,)),
        )
    )
    over = functools.partial(facts_report.over_training, measure="percent", ylabel="accuracy (%)")
    return {
        "facts_quick_accuracy": functools.partial(over, scratch),
        "facts_quick_gradients": functools.partial(report.gradients, scratch),
        "facts_quick_paired": functools.partial(report.paired, scratch, facts_report.COLORS),
        "facts_quick_by_question": functools.partial(report.by_question, scratch),
        "facts_smollm2_accuracy": functools.partial(over, causal),
        "facts_smollm2_gradients": functools.partial(report.gradients, causal),
        "facts_smollm2_h100_cosines": cosines_of_one_origin,
        "facts_smollm2_masked_attention": functools.partial(report.attention, masked),
    }


def cosines_of_one_origin():
    """SmolLM2 made masked and its causal control: the median cosine, which is what is on file."""
    path = DOCS / "results" / "facts_smollm2_h100" / "histories.json"
    of = json.loads(path.read_text(encoding="utf-8"))
    figure, ((ax,),) = report.new_figure(1, 1, (6.0, 3.2))
    for place, (model, name) in enumerate({"mdm": "masked", "arm": "causal"}.items()):
        seeds = [of[f"facts_{model}_p2c/p2c-{model}-seed{x}"] for x in facts_report.PAPER_SEEDS]
        cosine_TS = np.array([seed["gradient_cosine_total_median"] for seed in seeds]).T
        report.plot_seeds(ax, seeds[0]["eval_step"], cosine_TS, name, color=report.color(place))
    ax.axhline(0, color="gray", lw=0.8)
    ax.set(xlabel="step", ylabel="median cosine of the gradients")
    report.legend(ax)
    return figure


def study_figures() -> dict[str, Callable[[], Any]]:
    """Factor by factor."""
    lines = _lines("relations_study", "results", "l2", "in_context", "in_context_fresh")
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        found.setdefault(line["factor"], {})[line["value"]] = None
    of_choice = _lines("relations_study", *(x.rpartition("/")[2] for x in choice.FILES))
    return {
        "relations_study_choice": functools.partial(
            relations_study_report.choice_figure, of_choice, choice.guess
        ),
        **{
            f"relations_study_{factor}": functools.partial(
                relations_study_report.figures(factor), lines, factor, list(values)
            )
            for factor, values in found.items()
        },
    }


def dynamics_figures() -> dict[str, Callable[[], Any]]:
    """Gradient flow, from result lines and the curves on file."""
    config, lines = training_dynamics.Config(), _lines("training_dynamics", "quick")
    bilinear = {
        (width, seed): curves_of("training_dynamics", f"part=bilinear,width={width},seed={seed}")
        for width in config.widths
        for seed in config.seeds
    }
    cases = {
        case: curves_of("training_dynamics", f"part=one_layer,case={case}")
        for case in training_dynamics.CASES
    }
    part = functools.partial
    return {
        "dynamics_bilinear_losses": part(dynamics_report.loss_figure, config, bilinear),
        "dynamics_bilinear_widths": part(dynamics_report.width_figure, config, lines),
        "dynamics_one_layer": part(dynamics_report.one_layer_figure, cases),
        "dynamics_break_conditions": part(dynamics_report.break_figure, cases),
        "dynamics_weights": part(dynamics_report.weight_figure, config, bilinear, cases),
    }


def relations_figures() -> dict[str, Callable[[], Any]]:
    """Reversal sentences and chains, from the curves on file."""
    config = relations.Config(task="reversal")
    name = "task=reversal,family=gpt2"
    curves = stacked("relations", name, range(3), first=("cosines", "weights_"))
    lines = _lines("relations", "reversal_quick")
    quick = relations_page.PRESETS["quick"]

    def passed(of):  # in epochs
        return of["eval_step"] * quick["num_epochs"] / of["eval_step"][-1]

    epochs, size, part = passed(curves), config.sizes[0], functools.partial
    chain = stacked("relations", "task=chain,family=gpt2", range(3), first=("cosines", "weights_"))
    published_lines = _lines("relations_24x768", "reversal")
    seeds = [line["seed"] for line in published_lines]
    published = stacked("relations_24x768", name, seeds, first=("cosines", "weights_"))
    steps = math.ceil(published_lines[0]["num_sentences"] / config.batch_size)  # of an epoch
    published_epochs = published["eval_step"] / steps
    related = relations.Config(task="chain_related", num_train=tuple(quick["num_train"]))
    by_size = {
        n: stacked("relations", f"task=chain_related,family=gpt2,num_train={n}", range(3))
        for n in related.sizes
    }
    epochs_by_size = {n: passed(of) for n, of in by_size.items()}
    related_lines = _lines("relations", "chain_related_quick")
    return {
        "relations_chain_related": part(
            relations_report.size_figure, related, by_size, epochs_by_size, related_lines
        ),
        "relations_chain_gaps": part(relations_report.gap_figure, chain, passed(chain)),
        "relations_reversal_nll": part(
            relations_report.nll_figure, config, {size: curves}, {size: epochs}, lines
        ),
        "relations_reversal_logits": part(relations_report.logit_figure, curves),
        "relations_reversal_gaps": part(relations_report.gap_figure, curves, epochs),
        "relations_reversal_cosines": part(relations_report.cosine_figure, curves),
        "relations_24x768_nll": part(
            relations_report.nll_figure,
            config,
            {size: published},
            {size: published_epochs},
            published_lines,
        ),
        "relations_24x768_gaps": part(relations_report.gap_figure, published, published_epochs),
    }


def world_a_figures() -> dict[str, Callable[[], Any]]:
    """World A, from result lines alone."""
    of = {name: _lines(name, "results") for name in ("world_a", "world_a_2x128", "world_a_mlp")}
    regimes = _lines("world_a_regimes", "results")
    tasks = [f"world_a_gpt2_K{K}_{direction}" for K, direction in world_a_tables.PUBLISHED]
    gpt2 = [line for folder in tasks for line in _lines(folder, "results")]
    beside = [*regimes, *_lines("world_a_mlp_1000", "results")]
    trained = {
        f"K = {K} {name}": stacked(
            "world_a_gradients",
            f"run_type=scratch,lora_r=None,objective=next_token,K={K},direction={direction}",
            (0,),
        )
        for K in (1, 5)
        for name, direction in (("forward", "A-_B"), ("inverse", "B-_A"))
    }
    part = functools.partial
    return {
        "world_a_excess": part(world_a_report.excess_figure, of["world_a"], (1, 5)),
        "world_a_gpt2": part(world_a_report.pace_figure, gpt2),
        "world_a_bits": part(world_a_report.bits_figure, of["world_a"]),
        "world_a_bits_alone": part(
            world_a_bits_report.figure, _lines("world_a_bits", *world_a_tables.BITS_STUDY)
        ),
        "world_a_bits_pairs": part(
            world_a_bits_report.pairs_figure, world_a_tables.gpt2_pairs(direction="A->B")
        ),
        "world_a_excess_2x128": part(world_a_report.excess_figure, of["world_a_2x128"], (1, 5)),
        "world_a_gradients": part(world_a_report.gradients_figure, trained),
        "world_a_regimes": part(world_a_report.excess_figure, regimes, (1, 5)),
        "world_a_gap": part(world_a_report.gap_figure, beside),
        "world_a_mlp_gap": part(world_a_report.gap_figure, of["world_a_mlp"]),
        "world_a_lora": part(world_a_report.bits_figure, _lines("world_a_lora", "long")),
    }


def cause_figures() -> dict[str, Callable[[], Any]]:
    """Causes, the dial, cures and closure."""
    cells, part = _lines("causes", "results", "more"), functools.partial
    every = cells + _lines("causes", "positions", "depth", "depth_more", "positions_depth")
    parts = "", "_positions", "_depth"
    facts = {words: [words + part for part in parts] for words in ("one_word", "two_words")}
    further = {"toy pairs": every} | {
        f"facts, {words.replace('_', ' ')}": _lines("causes_facts", *files)
        for words, files in facts.items()
    }
    leading = {
        label: stacked("causes", f"{cell},positions=rope,layers=1", range(5))
        for label, cell in LEADING.items()
    }
    return {
        "causes_training": part(causes_report.training_figure, leading),
        "dial": part(dial_report.figure, _lines("dial", "results")),
        "causes_effects": part(causes_report.effect_figure, cells),
        "causes_mechanism": part(causes_report.mechanism_figure, every),
        "causes_further": part(causes_report.further_figure, further),
        "causes_patching": part(patching_report.figure, _lines("causes", "patches")),
        "cures": part(cures_report.figure, _lines("cures", "results", "more")),
        "cures_facts": part(
            cures_report.figure,
            _lines("cures_facts", "two_words", "symmetric", "symmetric_tokens"),
        ),
        "closure_phase": part(closure_report.phase_figure, _lines("closure", "results")),
        "closure_widths": part(
            closure_report.width_figure,
            [x for width in closure_tables.WIDTHS for x in closure_tables.of_width(width)],
        ),
    }


def reverse_bars(lines_by_name: Mapping[str, list[dict]]):
    """What reverse questions are answered with, run by run: a bar a mean, a dot a seed."""
    figure, ((ax,),) = report.new_figure(1, 1, (7.2, 5.2))
    height = 0.27
    kinds = {
        "exact": "percent",
        "repeats the question": "copied_percent",
        "choice": "choice_percent",
    }
    for offset, (label, measure) in enumerate(kinds.items(), -1):
        for place, lines in enumerate(lines_by_name.values()):
            values = [line[f"reverse_{measure}"] for line in lines]
            color, at = report.color(offset + 1), place + offset * height
            label_once = label if place == 0 else None
            ax.barh(at, np.mean(values), height, color=color, alpha=0.7, label=label_once)
            ax.plot(values, [at] * len(values), "k.", ms=3)
    ax.margins(y=0.01)
    ax.invert_yaxis()
    labels = [label.replace("\n", ", ") for label in lines_by_name]
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel="reverse questions (%)", xlim=(0, 101))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def seeds_apart(courses: Mapping[int, Sequence[tuple[Sequence[int], Sequence[float]]]]):
    """Reverse accuracy of each seed over steps, by length; the paper's mean at step 3000 beside."""
    figure, axes = report.new_figure(1, len(courses), (7.2 / len(courses), 2.8))
    for ax, (length, of_seeds) in zip(axes[0], courses.items(), strict=True):
        for steps, values in of_seeds:
            ax.plot(steps, values, "o-", color=report.REVERSE, ms=2.5, lw=0.8, alpha=0.7)
        paper = toy_reversal.PAPER_TABLE_2[length][1]
        ax.plot(3400, paper, "D", color="black", ms=5, label="the paper's mean")
        ax.set(title=f"L = {length}", ylim=(-2, 85), xlim=(300, 3700), xticks=(1000, 3000))
        ax.set_xlabel(f"step ({len(of_seeds)} seeds)")
    axes[0, 0].set_ylabel("reverse accuracy (%)")
    axes[0, 0].legend(fontsize="x-small", loc="lower left")
    return figure


def curves_of(folder: str, name: str) -> dict[str, np.ndarray]:
    """The curves of a run and seed on file."""
    with np.load(DOCS / "results" / folder / "curves" / f"{name}.npz") as stored:
        return dict(stored)


def stacked(folder: str, run: str, seeds: Iterable[int], first: tuple[str, ...] = ()) -> dict:
    """The curves of several seeds, as `WorkDir.stacked` has them."""
    of_seeds = [curves_of(folder, f"{run},seed={seed}") for seed in seeds]
    return histories.side_by_side(of_seeds, seeds_first=first)


def _lines(folder: str, *files: str) -> list[dict]:
    lines = []
    for file in files:
        path = DOCS / "results" / folder / f"{file}.jsonl"
        if not path.exists():
            raise FileNotFoundError(path)
        lines += results.read_results(path)
    return lines


if __name__ == "__main__":
    command.main(Config, draw)
