"""A model whose every answer is written down by hand goes through all that `facts` reports."""

import dataclasses
import functools
import types

import artists
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import report, runs, training
from dirasym.data import tokenizers
from dirasym.data.facts import FactSet, Query, Statement
from dirasym.workdir import WorkDir
from experiments import facts as page
from experiments.reports import facts as facts_report
from experiments.systems import facts

FACTS = FactSet(
    (
        Statement("Ann Bo's child is", "Cy"),
        Statement("Dee's child is", "Ed Fay"),
        Statement("Gil's child is", "Hal"),
    ),
    (
        Query("Ann Bo's child is", ("Cy", "Kim of")),
        Query("Dee's child is", ("Ed Fay",)),
        Query("Gil's child is", ("Hal",)),
    ),
    (
        Query("Cy's parent is", ("Ann Bo", "Zed")),
        Query("Ed Fay's parent is", ("Dee",)),
        Query("Hal's parent is", ("Gil",)),
        Query("Ivy's parent is", ("Jo",)),
    ),
)
# By prompt: what is said, and probabilities of the first token; the rest is shared by the others.
TOLD = {
    "Ann Bo's child is": ("Cy", dict(Cy=0.5, Ed=0.3)),
    "Dee's child is": ("Ed Fay of", dict(Ed=0.6, Cy=0.1)),
    "Gil's child is": ("Gil", dict(Gil=0.5, Cy=0.2, Hal=0.1)),
    "Cy's parent is": ("Zed", dict(Zed=0.4, Ann=0.3, Dee=0.1)),
    "Ed Fay's parent is": ("Ed Fay", dict(Ed=0.4, Jo=0.2, Dee=0.05)),
    "Hal's parent is": ("Hal Gil", dict(Hal=0.5, Gil=0.2, Ann=0.05)),
    "Ivy's parent is": ("Jo", dict(Jo=0.4, Ann=0.3)),
}
# Exact: Cy | Zed, Jo. Begun: Cy, Ed Fay of | Zed, Jo. Copied: Gil | Ed Fay. Choice: not Hal | not
# Dee. Rank of the true first token: 1, 1, 3 | 2, 3, 2, 1.
KNOWN = {
    "forward_percent": 100 / 3,
    "reverse_percent": 50.0,
    "forward_begun_percent": 200 / 3,
    "reverse_begun_percent": 50.0,
    "forward_copied_percent": 100 / 3,
    "reverse_copied_percent": 25.0,
    "forward_choice_percent": 200 / 3,
    "reverse_choice_percent": 75.0,
    "forward_p": (0.5 + 0.6 + 0.1) / 3,
    "reverse_p": (0.3 + 0.05 + 0.2 + 0.4) / 4,
    "forward_rank": 1.0,
    "reverse_rank": 2.0,
    "forward_questions": 3,
    "reverse_questions": 4,
}
# "[M]'s child is Cy" and "[M]'s child is Ed Fay": what a masked model thinks of the parent.
PARENT = {("Ann Bo", "Cy"): dict(Ann=0.7, Dee=0.1), ("Dee", "Ed Fay"): dict(Dee=0.2, Gil=0.5)}
# Attention from [M]: worth of a token after it and before it; Ed Fay counts as the mean of both.
WORTH = {"Cy": (1.0, 2.0), "Ed": (4.0, -1.0), "Fay": (2.0, 7.0), "Hal": (-1.0, 1.0)}
CONFIG = facts.Config(
    seeds=(1, 7), epochs=1, eval_epochs=1, batch_size=3, learning_rate=0.0, gradient_examples=2,
    attention_examples=3, attention_distance=2,
)  # fmt: skip


def _words():
    return tokenizers.Words(FACTS.texts())


def _shares(tokenizer, shares):
    """Probabilities of all tokens but [M]; those not named have equal small ones."""
    p_V = np.full(tokenizer.vocab_size, np.nan)
    p_V[tokenizer.mask_id] = 0
    for word, share in shares.items():
        p_V[tokenizer.encode([word])[0][0]] = share
    return np.where(np.isnan(p_V), (1 - np.nansum(p_V)) / np.isnan(p_V).sum(), p_V)


class Oracle:
    """Stands for a `Trainable`: its parameters scale the logits and tilt them."""

    def __init__(self, model, optimizer, base=None, adapters=None):
        self.masked, self.optimizer, self.adapters = not model.config.causal, optimizer, adapters
        self.module = model
        self.tokenizer = tok = _words()
        assert tok.vocab_size == model.config.vocab_size
        prompts = tok.encode(list(TOLD))
        longest = max(map(len, prompts))
        self.prompt_QL = np.array([p + [-1] * (longest - len(p)) for p in prompts])
        self.size_Q = np.array([len(p) for p in prompts])
        said = tok.encode([text for text, _ in TOLD.values()])
        self.said_QN = np.array([s + [tok.eos_id] * (3 - len(s)) for s in said])
        self.p_QV = np.stack([_shares(tok, shares) for _, shares in TOLD.values()])
        self.tilt_V = np.arange(tok.vocab_size) / 10
        self.parents = []
        for (parent, child), shares in PARENT.items():
            row = tok.encode([f"{parent}'s child is {child}"])[0]
            (hidden,) = tok.encode([parent])
            row[: len(hidden)] = [tok.mask_id] * len(hidden)
            self.parents.append((row, _shares(tok, shares)))

    def state(self, seed):
        params = {"embed": {"tilt": jnp.zeros(())}, "head": {"scale": jnp.ones(())}}
        key = jax.random.key(seed)
        return training.create_state(self.apply_fn, params, self.optimizer, key)

    @functools.cached_property
    def apply_fn(self):
        def apply_fn(params, tokens_BL, *, valid_BL=None):
            if valid_BL is None:
                valid_BL = jnp.ones(tokens_BL.shape, bool)
            order_BL = jnp.argsort(~valid_BL, axis=1, stable=True)
            row_BL = jnp.take_along_axis(jnp.where(valid_BL, tokens_BL, -1), order_BL, axis=1)
            wide = max(self.prompt_QL.shape[1], row_BL.shape[1])
            row_BL = jnp.pad(row_BL, ((0, 0), (0, wide - row_BL.shape[1])), constant_values=-1)
            ignored_QL = self.prompt_QL == -1
            same_BQL = row_BL[:, None, : self.prompt_QL.shape[1]] == self.prompt_QL[None]
            asked_B = jnp.argmax((same_BQL | ignored_QL[None]).all(axis=-1), axis=1)
            place_BL = jnp.cumsum(valid_BL, axis=1) - 1 - jnp.asarray(self.size_Q)[asked_B][:, None]
            place_BL = place_BL + (0 if self.masked else 1)
            next_BL = jnp.take_along_axis(
                jnp.asarray(self.said_QN)[asked_B], jnp.clip(place_BL, 0, 2), axis=1
            )
            logits_BLV = 30.0 * jax.nn.one_hot(next_BL, self.tilt_V.size)
            first_BV = jnp.log(jnp.maximum(jnp.asarray(self.p_QV), 1e-30))[asked_B]
            logits_BLV = jnp.where((place_BL == 0)[..., None], first_BV[:, None], logits_BLV)
            for row, p_V in self.parents if self.masked else ():
                padded = jnp.array(row + [-1] * (wide - len(row)))
                is_row_B = (row_BL == padded[None]).all(axis=1)
                logits_BLV = jnp.where(
                    is_row_B[:, None, None], jnp.log(jnp.maximum(p_V, 1e-30)), logits_BLV
                )
            tilt_V = params["embed"]["tilt"] * self.tilt_V
            return params["head"]["scale"] * logits_BLV + tilt_V[None, None]

        return apply_fn

    @property
    def extend_fn(self):
        def extend_fn(params, cache, tokens_BL, start, valid_BS):
            row_BS = cache.get("row", jnp.zeros(valid_BS.shape, jnp.int32))
            row_BS = jax.lax.dynamic_update_slice_in_dim(row_BS, tokens_BL, start, axis=1)
            size = tokens_BL.shape[1]
            read_BS = valid_BS & (jnp.arange(valid_BS.shape[1]) < start + size)[None]
            logits_BSV = self.apply_fn(params, row_BS, valid_BL=read_BS)
            return jax.lax.dynamic_slice_in_dim(logits_BSV, start, size, 1), {"row": row_BS}

        return extend_fn

    @property
    def internals_fn(self):
        tok = self.tokenizer
        worth_WV = np.zeros((2, tok.vocab_size), np.float32)
        later_V = np.zeros(tok.vocab_size, int)  # how far a token stands behind its name's first
        for word, worth in WORTH.items():
            worth_WV[:, tok.encode([word])[0][0]] = worth
        later_V[tok.encode(["Fay"])[0][0]] = 1

        def internals(params, tokens_EL):
            place_L = jnp.arange(tokens_EL.shape[1])
            gap_LL = place_L[None] - place_L[:, None]
            near_ELL = gap_LL[None] - jnp.asarray(later_V)[tokens_EL][:, None]
            after, before = (jnp.asarray(w_V)[tokens_EL][:, None] for w_V in worth_WV)
            sign_ELL = jnp.where(near_ELL == 1, 1.0, -1.0)  # after [M], distances differ in sign
            same = jnp.where(gap_LL[None] > 0, after * sign_ELL, after)
            other = jnp.where(gap_LL[None] > 0, after * sign_ELL, before)
            scores = jnp.stack([same, other], axis=1)[None]
            return {"scores": scores, "weights": jax.nn.softmax(scores)}

        return internals


@pytest.fixture(scope="module", params=["mdm", "arm"])
def done(request, tmp_path_factory):
    """Two seeds of one kind of model, run and reported."""
    path = tmp_path_factory.mktemp(request.param)
    config = dataclasses.replace(CONFIG, models=(request.param,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "Trainable", Oracle)
        patch.setattr(facts, "fact_set", lambda name, config: FACTS)
        all_runs = page.plan(config, path)
    workdir = WorkDir(path, {})
    lines = runs.sweep(all_runs, config.seeds, workdir, progress=False)
    return types.SimpleNamespace(
        kind=request.param, config=config, runs=all_runs, workdir=workdir, lines=lines
    )


def test_every_number_of_a_result_line_is_the_known_one(done):
    assert [line["seed"] for line in done.lines] == [1, 7]
    for line in done.lines:
        assert (line["data"], line["model"]) == ("p2c", done.kind)
        for key, value in KNOWN.items():
            np.testing.assert_allclose(line[key], value, rtol=1e-5, err_msg=key)
        for key in ("forward_percent", "reverse_percent"):
            assert line[f"best_{key}"] == line[key]
        size = done.config
        assert (line["layers"], line["width"]) == (size.layers, size.width)
        assert line["heads"] == size.heads and line["total_params"] == 2  # the oracle's
    if done.kind == "arm":  # Cy, Ed and Hal, each end but that of Ed Fay, where "of" is said
        nats = -np.log([0.5, 0.6, 0.1]).sum() + 30
        np.testing.assert_allclose(done.lines[0]["final_loss"], nats / 7, rtol=1e-6)


def test_single_facts_are_recorded_with_their_own_numbers(done):
    history = done.workdir.curves(done.runs[0], 7)
    reverse = [0.3, 0.05]  # Ann, of Cy; Dee, of Ed Fay
    forward = [0.7, 0.2] if done.kind == "mdm" else [0.5, 0.6]  # the same parents, or the children
    known = {
        "forward_p_E": [0.5, 0.6, 0.1],
        "forward_rank_E": [1, 1, 3],
        "reverse_p_E": [0.3, 0.05, 0.2, 0.4],
        "reverse_rank_E": [2, 3, 2, 1],
        "paired_forward_p": forward,
        "paired_reverse_p": reverse,
    }
    for key, value in known.items():
        np.testing.assert_allclose(history[key], [value] * 2, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_a_masked_model_never_answers_its_paired_queries_with_the_mask(kind, monkeypatch):
    asked = []

    def spy(apply_fn, params, questions, *, mask_id):
        asked.append(mask_id)
        return types.SimpleNamespace(p_E=np.zeros(2))

    monkeypatch.setattr(facts, "Trainable", Oracle)
    monkeypatch.setattr(facts, "fact_set", lambda name, config: FACTS)
    monkeypatch.setattr(facts, "token_recall", spy)
    task = facts.Task("p2c", kind, CONFIG)
    task.evaluate(task.trained.state(1))
    assert asked == [_words().mask_id if kind == "mdm" else None] * 2


def _slopes(shares, target):
    """d/d(scale, tilt) of −log softmax(scale·log p + tilt·v) at (1, 0), with v = 0, 0.1, .."""
    words = _words()
    p_V, target = _shares(words, shares), words.encode([target])[0][0]
    x_V, tilt_V = np.log(np.maximum(p_V, 1e-30)), np.arange(words.vocab_size) / 10
    return np.array([p_V @ x_V - x_V[target], p_V @ tilt_V - tilt_V[target]])


def test_gradients_of_paired_questions_are_those_of_the_formula(done):
    """Fact by fact: of the parent both times, or (causal) of the child and then the parent."""
    reverse = [("Cy's parent is", "Ann"), ("Ed Fay's parent is", "Dee")]
    if done.kind == "mdm":
        forward = list(zip(PARENT.values(), ("Ann", "Dee"), strict=True))
    else:
        asked = [("Ann Bo's child is", "Cy"), ("Dee's child is", "Ed")]
        forward = [(TOLD[prompt][1], target) for prompt, target in asked]
    history = done.workdir.curves(done.runs[0], 7)
    for number, ((shares, target), (prompt, parent)) in enumerate(
        zip(forward, reverse, strict=True)
    ):
        fwd, rev = _slopes(shares, target), _slopes(TOLD[prompt][1], parent)
        inner = dict(head=fwd[0] * rev[0], embed=fwd[1] * rev[1], total=fwd @ rev)
        cosine = fwd @ rev / np.linalg.norm(fwd) / np.linalg.norm(rev)
        for block, value in inner.items():
            found = history[f"gradient_inner_{block}"][:, number]
            np.testing.assert_allclose(found, [value] * 2, rtol=1e-4, err_msg=block)
        found = history["gradient_cosine_total"][:, number]
        np.testing.assert_allclose(found, [cosine] * 2, rtol=1e-4)


def test_attention_is_correlated_over_names_by_distance(done):
    history = done.workdir.curves(done.runs[0], 1)
    if done.kind == "arm":
        assert not [key for key in history if key.startswith("attention")]
        return
    mean = {"Cy": WORTH["Cy"], "Hal": WORTH["Hal"]}
    mean["Ed Fay"] = np.mean([WORTH["Ed"], WORTH["Fay"]], axis=0)
    r = np.corrcoef(*np.transpose(list(mean.values())))[0, 1]
    np.testing.assert_array_equal(history["attention_total"], [2, 3, 4])
    # Forward scores turn their sign at distance 2: +r; +r and −r; −r.
    want = [[[1, 0, -1], [r, 0, -r]]]
    np.testing.assert_allclose(history["attention_mean"], want, atol=1e-6)
    assert (history["attention_low"] <= history["attention_mean"] + 1e-6).all()


def test_tables_say_what_the_lines_say_beside_the_paper(done, capsys):
    page.report(done.workdir, done.config, done.runs)
    printed = capsys.readouterr().out.splitlines()
    kind = done.kind.upper()
    paper = {"mdm": ("76.7", "48.3"), "arm": ("89.9 / 89.9", "15.9 / 0.5")}[done.kind]
    assert (
        printed[2]
        == f"| P2C | {kind} | forward | 33.3 ± 0.0 | 33.3 ± 0.0 | 33.3, 33.3 | {paper[0]} |"
    )
    assert (
        printed[3]
        == f"| P2C | {kind} | reverse | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0, 50.0 | {paper[1]} |"
    )
    text = (done.workdir.path / "report.md").read_text()
    theirs = {"mdm": "84 / 45", "arm": "88 / 19; 90 / 0"}[done.kind]  # Tables 4 and 5, seed 1
    # Wilson's interval of k of n, z = 1.96: (k + z²/2 ± z √(k(n − k)/n + z²/4)) / (n + z²).
    last = "33.3 (6.1 to 79.2) | 50.0 (15.0 to 85.0)"
    assert f"| P2C | 1 | {kind} | {last} | 33.3 / 50.0 | {theirs} |" in text
    assert f"| P2C | 7 | {kind} | {last} | 33.3 / 50.0 |  |" in text
    assert f"| P2C | {kind} | forward | 33.3 | 66.7 | 33.3 | 66.7 | 0.400 | 1.0 |" in text
    assert f"| P2C | {kind} | reverse | 50.0 | 50.0 | 25.0 | 75.0 | 0.237 | 2.0 |" in text


def test_the_best_is_over_evaluations_and_the_rest_is_the_last():
    history = {
        f"{way}_{name}": np.array([first, second, third])
        for way, first, second, third in (("forward", 5, 1, 2), ("reverse", 3, 4, 7))
        for name in ("percent", "begun_percent", "copied_percent", "choice_percent", "p", "rank")
    }
    history["reverse_choice_percent"] = np.array([1.0, 2.0, np.nan])
    counts = {f"{way}_questions": np.full(3, n) for way, n in (("forward", 5), ("reverse", 9))}
    line = page.summarize(history | counts | {"loss": np.array([9.0, 8.0, 6.0])})
    assert (line["forward_questions"], line["reverse_questions"]) == (5, 9)
    assert (line["forward_percent"], line["best_forward_percent"]) == (2, 5)
    assert (line["reverse_percent"], line["best_reverse_percent"]) == (7, 7)
    assert (line["forward_rank"], line["reverse_p"], line["final_loss"]) == (2, 7, 6)
    assert line["reverse_choice_percent"] is None and line["forward_choice_percent"] == 2


def test_table_1_of_the_paper_is_the_mean_of_its_tables_4_to_6():
    printed = {  # LLaDA, LLaMA, Qwen; forward and reverse
        "p2c": (76.7, 48.3, 89.9, 15.9, 89.9, 0.5),
        "c2p": (87.7, 43.7, 95.9, 6.9, 89.0, 1.4),
        "p2d": (72.7, 99.5, 72.7, 3.5, 70.7, 2.2),
        "d2p": (99.7, 41.3, 83.0, 1.8, 80.0, 1.5),
        "trex": (92.3, 81.5, 87.3, 2.8, 89.8, 2.3),
    }
    assert page.PAPER.keys() == printed.keys()
    for data, row in printed.items():
        np.testing.assert_allclose(np.mean(page.PAPER[data], axis=0), row, atol=0.051)
    assert [seed[1] for seed in page.PAPER["d2p"]] == [47.5, 40.5, 36]  # in Table 5


def test_shares_of_many_questions_have_their_wilson_interval():
    line = {"reverse_percent": 96.8, "reverse_questions": 250}  # 242 right
    assert facts_report._over_questions(line, "reverse") == "96.8 (93.8 to 98.4)"


def test_the_papers_seeds_are_set_beside_ours():
    """Tables 4 to 6 of arXiv 2602.02133: seeds 1, 42 and 1234, in this order."""
    run = types.SimpleNamespace(identity={"data": "p2c", "model": "arm"})
    line = {
        f"{kind}{way}_percent": 50.0 for way in facts_report.DIRECTIONS for kind in ("", "best_")
    }
    line |= {f"{way}_questions": 4 for way in facts_report.DIRECTIONS}
    lines = [line | {"seed": seed} for seed in (1234, 42, 1, 2)]
    rows = [row[-1] for row in facts_report._seed_rows(run, lines, page.PAPER)]
    theirs = [f"{x[2]} / {x[3]}; {x[4]} / {x[5]}" for x in page.PAPER["p2c"]]
    assert rows == [theirs[2], theirs[1], theirs[0], ""]
    lines = [line | {"seed": seed} for seed in (1, 42)]
    ((*_, forward), (*_, reverse)) = facts_report._table_rows(run, lines, page.PAPER)
    assert (forward, reverse) == ("89.9 / 89.9", "15.9 / 0.5")
    assert {row[-1] for row in facts_report._table_rows(run, lines, {})} == {""}


def test_a_report_draws_gradients_and_attention_where_they_were_measured(done, monkeypatch):
    drawn = artists.of_report(monkeypatch, facts_report.report)
    facts_report.write(done.workdir, done.config, done.runs, page.PAPER)
    measured = {"gradients": "gradient_cosine_total", "paired": "paired_forward_p"}
    measured["by_question"] = "reverse_rank_E"
    if done.kind == "mdm":  # a causal model has no attention both ways
        measured["attention"] = "attention_mean"
    assert set(drawn) == {"accuracy", "probability", "rank", *measured}
    title = f"P2C, {facts_report.LABELS[done.kind]}"
    for name, key in measured.items():
        (curves,) = drawn[name]
        assert list(curves) == [title] and key in curves[title]
    stacked = done.workdir.stacked
    for name in measured:
        prefix = measured[name]
        monkeypatch.setattr(
            done.workdir,
            "stacked",
            lambda *args, prefix=prefix, **how: {
                k: v for k, v in stacked(*args, **how).items() if not k.startswith(prefix)
            },
        )
        facts_report.write(done.workdir, done.config, done.runs, page.PAPER)
        assert name not in drawn


def test_figures_draw_the_curves(done):
    pytest.importorskip("matplotlib")
    moments = np.array([0, 5])
    curves = {
        "eval_step": moments,
        "forward_p": np.array([[0.1, 0.3], [0.5, 0.9]]),
        "reverse_p": np.array([[0.2, 0.0], [0.4, 0.1]]),
    }
    axes = facts_report.over_training({"P2C": curves, "C2P": curves}, "p", "P").axes
    assert [ax.get_title() for ax in axes] == ["P2C", "C2P"]
    for start, way in ((0, "forward"), (3, "reverse")):
        mean, *seeds = axes[1].get_lines()[start : start + 3]
        assert mean.get_label() == way and mean.get_color() == facts_report.COLORS[way]
        np.testing.assert_allclose(mean.get_ydata(), curves[f"{way}_p"].mean(axis=1))
        for seed, line in enumerate(seeds):
            np.testing.assert_array_equal(line.get_ydata(), curves[f"{way}_p"][:, seed])
            np.testing.assert_array_equal(line.get_xdata(), moments)


def test_figures_of_single_facts_draw_their_curves():
    pytest.importorskip("matplotlib")
    moments = np.array([0, 5])
    p_TSE = np.array([[[0.1, 0.3], [0.5, 0.9]], [[0.2, 0.4], [0.0, 0.1]]])
    curves = {"eval_step": moments, "paired_forward_p": p_TSE, "paired_reverse_p": p_TSE / 2}
    (ax,) = report.paired({"P2C": curves}, facts_report.COLORS).axes
    assert (ax.get_title(), ax.get_ylabel()) == ("P2C", "P(true first token)")
    for start, way, factor in ((0, "forward", 1.0), (3, "reverse", 0.5)):
        mean, *seeds = ax.get_lines()[start : start + 3]
        assert mean.get_label() == way and mean.get_color() == facts_report.COLORS[way]
        np.testing.assert_allclose(mean.get_ydata(), [0.45 * factor, 0.175 * factor])
        for seed, line in enumerate(seeds):
            np.testing.assert_allclose(line.get_ydata(), factor * p_TSE[:, seed].mean(axis=1))

    rank_TSE = np.array([[[9, 9, 9]] * 2, [[8, 8, 8]] * 2, [[3, 1, 2], [7, 70, 4]]])
    curves = {"reverse_p_E": 1 / rank_TSE, "reverse_rank_E": rank_TSE}
    other = {key: x[:, :1] for key, x in curves.items()}
    p, rank = report.by_question({"masked": curves, "causal": other}).axes
    drawn = [line.get_ydata().tolist() for line in rank.get_lines()]
    assert drawn == [[1, 2, 3], [4, 7, 70], [1, 2, 3]] and rank.get_yscale() == "log"
    for line, other in zip(p.get_lines(), drawn, strict=True):
        np.testing.assert_allclose(line.get_ydata(), 1 / np.array(other))
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    assert (p.get_ylabel(), rank.get_ylabel()) == ("P(true first token)", "its rank")
    colors = [line.get_color() for line in rank.get_lines()]
    assert colors == [report.COLORS[n] for n in (0, 0, 1)]
    assert artists.entries(p.get_legend()) == ["masked", "causal"]


def test_heads_of_the_answers_say_what_stands_under_them():
    heads = "exact %", "begun %", "copied %", "choice %", "P(true first token)", "its median rank"
    keys = "percent", "begun_percent", "copied_percent", "choice_percent", "p", "rank"
    assert facts_report.ANSWER_COLUMNS == dict(zip(heads, keys, strict=True))
