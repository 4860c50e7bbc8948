"""Models whose losses are known by hand, through the code that reports World A's numbers."""

import json
import math

import artists
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym import models
from dirasym.analysis import excess
from dirasym.data import string_maps
from dirasym.data.string_maps import DIRECTIONS
from experiments import world_a_mlp
from experiments.reports import world_a as report
from experiments.systems import world_a

FEW = dict(Ks=(5,), n_pairs=50, epochs=2, batch_size=40, eval_every=1, tokenizer="characters")
FEW |= dict(layers=1, width=12, modes=("scratch",))
# 2 epochs of 2 steps, the second of 10 pairs: nats a token, and tokens.
LOSS, COUNT = np.float32([4.0, 3.0, 2.0, 1.0]), np.float32([360, 90, 360, 90])


def _table(seed, size, scale=1.0):
    return scale * np.random.RandomState(seed).randn(size, size)


def _log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _bigram(params, tokens_BL, **_):
    """The logits of a position are a row of a table: that of the token read there."""
    return params["embed"]["embedding"][tokens_BL]


def _task(tmp_path, **flags):
    config = world_a.Config(**FEW | flags)
    regime = world_a.regimes(config)[0]
    return world_a.Task(world_a.Setting(config, tmp_path), regime)


def _state(task, table, tx=None):
    params, tx = {"embed": {"embedding": jnp.float32(table)}}, tx or task.trainable.optimizer
    state = task.trainable.state(0)
    return state.replace(apply_fn=_bigram, params=params, tx=tx, opt_state=tx.init(params))


def _by_hand(data, log_p, predict):
    """Nats per string: −Σ log p over the scored tokens, in a loop."""
    total = 0.0
    for tokens, scored in zip(data["tokens_BL"], data["scored_BL"], strict=True):
        for place in np.flatnonzero(scored):
            total -= log_p[predict(tokens, place), tokens[place]]
    return total / len(data["tokens_BL"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_causal_table_gets_its_loss_in_every_unit(direction, tmp_path):
    task = _task(tmp_path)
    run = task.run(5, direction, 7)
    data = run.data(0)
    table = _table(0, task.setting.tokenizer.vocab_size)
    expected = _by_hand(data, _log_softmax(table), lambda tokens, place: tokens[place - 1])
    got = run.evaluate(_state(task, table))
    assert set(got) == {"nats_per_string"}
    assert float(got["nats_per_string"]) == pytest.approx(expected, rel=1e-5)

    history = {"loss": LOSS, "count": COUNT, "eval_step": np.array([0, 2, 4])}
    history["nats_per_string"] = np.float32([50.0, 40.0, got["nats_per_string"]])
    line = run.summarize(history)
    # Of 5 A that share a B one is the answer: ln 5, and log2 of the maps by brute force.
    floor = {"forward": 0.0, "inverse": math.log(5)}[direction]
    strings = 36**8
    orders = 10 * math.log2(math.factorial(5))
    bits = {
        "forward": math.log2(math.comb(strings, 10) * math.factorial(50)) - orders,
        "inverse": sum(math.log2(strings - n) for n in range(50)) - orders,
    }[direction] / 50
    assert line["theoretical_min"] == pytest.approx(floor)
    assert line["floor_nats_per_string"] == pytest.approx(floor, abs=1e-12)
    assert (line["floor_kind"], line["tokens_per_target"]) == ("joint", 9.0)
    assert line["bits_to_store_per_pair"] == pytest.approx(bits, rel=1e-9)
    # The paper's mean is over batches: (2 + 1) / 2; the sum in nats (2·360 + 90) / 50.
    assert line["train_curve"] == [3.5, 1.5] and line["final_train_loss"] == 1.5
    assert line["excess_loss"] == pytest.approx(1.5 - floor)
    assert line["excess_nats_per_string_curve"] == pytest.approx([34.2 - floor, 16.2 - floor])
    assert line["excess_nats_per_string"] == pytest.approx(16.2 - floor)
    clean = expected - floor
    assert line["eval_excess_nats_per_string"] == pytest.approx(clean, rel=1e-5)
    curve = line["eval_excess_nats_per_string_curve"]
    assert curve == pytest.approx([50 - floor, 40 - floor, clean], rel=1e-5)
    assert line["excess_bits_per_stored_bit"] == pytest.approx(clean / math.log(2) / bits, rel=1e-5)
    assert line["eval_epochs"] == [0, 1, 2]
    assert (line["run_id"], line["max_len"]) == (7, 23)
    sizes = models.sizes(run.network, task.trainable.state(0).params)
    assert sizes == dict(layers=1, width=12, heads=12, total_params=line["total_params"])


@pytest.mark.parametrize("objective", ["masked_diffusion", "parallel"])
def test_a_bidirectional_table_gets_its_loss(objective, tmp_path):
    task = _task(tmp_path, attention="bidirectional", objectives=(objective,))
    run = task.run(5, "inverse", 1)
    mask = task.setting.tokenizer.eos_id
    table = _table(1, task.setting.tokenizer.vocab_size)
    shown = table.copy()
    shown[:, mask] = -np.inf  # [M] is never predicted
    expected = _by_hand(run.data(0), _log_softmax(shown), lambda tokens, place: mask)
    got = run.evaluate(_state(task, table))["nats_per_string"]
    assert float(got) == pytest.approx(expected, rel=1e-5)
    # The loss of masked diffusion is per string, of 9 tokens.
    size = 9 if objective == "masked_diffusion" else 1
    history = {"loss": size * LOSS, "count": COUNT / size, "eval_step": np.array([0, 4])}
    history["nats_per_string"] = np.array([50.0, got])
    line = run.summarize(history)
    assert line["train_curve"] == pytest.approx([3.5, 1.5])
    floor = math.log(5)
    if objective == "parallel":
        targets, sources = task.setting.maps[5].pairs
        groups = {
            b: [a for a, of in zip(targets, sources, strict=True) if of == b] for b in sources
        }
        floor = 0.0
        for group in groups.values():
            for letters in zip(*group, strict=True):
                shares = [letters.count(letter) / 5 for letter in set(letters)]
                floor -= sum(share * math.log(share) for share in shares) / len(groups)
    assert line["floor_nats_per_string"] == pytest.approx(floor)
    assert line["excess_nats_per_string"] == pytest.approx(16.2 - floor)
    assert line["eval_excess_nats_per_string"] == pytest.approx(expected - floor, rel=1e-5)


@pytest.mark.parametrize("objective", ["next_token", "masked_diffusion", "parallel"])
def test_a_floor_knows_the_length_where_the_model_sees_it(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(excess, "make_case", lambda *args, **how: how)
    attention = "causal" if objective == "next_token" else "bidirectional"
    task = _task(tmp_path, attention=attention, objectives=(objective,))
    assert task.case(5, "inverse") == {"length_known": attention == "bidirectional"}


def test_the_mlps_table_gets_its_loss():
    config = world_a_mlp.Config(Ks=(5,), n_pairs=50, epochs=2, batch_size=40, eval_every=1)
    _, run = world_a_mlp.plan(config, None)
    table = _table(2, world_a_mlp.VOCAB)

    def apply_fn(params, tokens_BL):  # a target's character from the source's at its place
        logits_BLV = params[tokens_BL[:, :8]]
        return jnp.concatenate([jnp.zeros_like(logits_BLV), logits_BLV], axis=1)

    state = run.init(0).replace(apply_fn=apply_fn, params=jnp.float32(table), opt_state=())
    data = run.data(0)
    expected = _by_hand(data, _log_softmax(table), lambda tokens, place: tokens[place - 8])
    got = run.evaluate(state)["nats_per_string"]
    assert float(got) == pytest.approx(expected, rel=1e-5)
    history = {"loss": LOSS, "count": COUNT, "eval_step": np.array([0, 4])}
    history["nats_per_string"] = np.array([50.0, got])
    line = run.summarize(history)
    # Its mean is over samples: (4·360 + 3·90) / 50 / 8 and (2·360 + 90) / 50 / 8.
    assert line["train_curve"] == pytest.approx([34.2 / 8, 16.2 / 8])
    assert line["final_loss"] == pytest.approx(16.2 / 8)
    assert line["excess_loss"] == pytest.approx(16.2 / 8 - math.log(5))
    floor = string_maps.parallel_floor(*world_a.string_map(config, 5).oriented("inverse"))
    assert line["excess_nats_per_string"] == pytest.approx(16.2 - floor)
    assert line["eval_excess_nats_per_string"] == pytest.approx(expected - floor, rel=1e-5)
    assert (line["floor_kind"], line["tokens_per_target"]) == ("parallel", 8.0)


def test_gradients_of_a_table_are_those_by_hand(tmp_path):
    task = _task(tmp_path, track_gradients=True)
    table = _table(3, task.setting.tokenizer.vocab_size)
    p = np.exp(_log_softmax(table))
    by_hand = {}
    for direction in DIRECTIONS:
        data = task.setting.rows[task.setting.maps[5], direction]
        gradient = np.zeros_like(table)
        for tokens, scored in zip(data["tokens_BL"][:40], data["scored_BL"][:40], strict=True):
            for place in np.flatnonzero(scored):
                gradient[tokens[place - 1]] += p[tokens[place - 1]] / 40
                gradient[tokens[place - 1], tokens[place]] -= 1 / 40
        by_hand[direction] = gradient
    run = task.run(5, "forward", 1)
    got = run.evaluate(_state(task, table, optax.sgd(0.25)))
    forward, inverse = (by_hand[direction] for direction in DIRECTIONS)
    norms = [np.linalg.norm(x) for x in (forward, inverse)]
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)
    for block in ("embed", "total"):
        cosine = (forward * inverse).sum() / norms[0] / norms[1]
        assert float(got[f"cosine/{block}"]) == pytest.approx(cosine, rel=1e-4)
        for name, norm in zip(DIRECTIONS, norms, strict=True):
            assert float(got[f"norm_{name}/{block}"]) == pytest.approx(norm, rel=1e-4)
            ratio = 0.25 * norm / np.linalg.norm(table)
            assert float(got[f"update_{name}/{block}"]) == pytest.approx(ratio, rel=1e-4)


def _line(K, direction, seed, value, **more):
    """Excess of `value` in the paper's convention, twice it in training, and so on."""
    line = dict(run_type="scratch", lora_r=None, objective="next_token", K=K, seed=seed)
    line |= dict(zip(report.UNITS, (value, 2 * value, 3 * value, 5 * value), strict=True))
    line |= dict(direction=direction, floor_nats_per_string=0.5, floor_kind="joint")
    line |= dict(tokens_per_target=9.0, bits_to_store_per_pair=10.0 + K, run_wall_time_sec=4.0)
    line |= dict(eval_epochs=[0, 10, 20])
    line["eval_excess_nats_per_string_curve"] = [8.0 + seed, 6.0, 3 * value]
    return line | more


LINES = [
    _line(5, "B->A", 1, 2.5),
    _line(5, "A->B", 0, 0.25, bits_to_store_per_pair=7.0),
    _line(5, "A->B", 1, 0.5, bits_to_store_per_pair=7.0),
    _line(5, "B->A", 0, 1.5),
    _line(1, "A->B", 0, 1.0),
    _line(5, "B->A", 0, 4.0, run_type="lora", lora_r=256),
    _line(5, "A->B", 0, 3.0, run_type="lora", lora_r=256),
]


def _cells(table):
    header, _, *rows = ([x.strip() for x in row.split("|")[1:-1]] for row in table.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_tables_hold_means_intervals_and_published_numbers():
    one, forward, inverse, *lora = _cells(report.run_table(LINES, (1, 5)))
    assert (one["regime"], one["K"], one["seeds"], one["paper"]) == ("scratch", "1", "1", "1.000")
    assert (forward["direction"], forward["seeds"]) == ("A->B", "2")
    # Two seeds: ± 12.706 · half of their distance.
    assert forward["paper"] == "0.375 ± 1.588"
    assert inverse["paper"] == "2.000 ± 6.353 / 2.07"
    assert inverse["training"] == "4.000 ± 12.706" and inverse["clean"].startswith("6.000 ±")
    assert inverse["missing"].startswith("10.000 ±")
    scratch = report.families(LINES)[0]
    gaps = [scratch.published(K, 2) for K in (1, 5, 8, 2)]
    assert gaps == [" / 0.00", " / 1.16", " / 0.90", ""]
    mlp = [report.Family("mlp", None, None).published(K, 2) for K in (1, 5, 8)]
    assert mlp == [" / 0.00", " / 0.22", " / 0.10"]
    assert (inverse["floor"], inverse["tokens"]) == ("0.500 joint", "9.00")
    assert (forward["bits"], inverse["bits"], inverse["seconds"]) == ("7.00", "15.00", "4")
    assert [row["regime"] for row in lora] == ["lora r=256"] * 2
    assert [row["paper"] for row in lora] == ["3.000", "4.000 / 3.15"]
    scratch, adapted = _cells(report.gap_table(LINES, (1, 5)))
    assert (scratch["K"], adapted["regime"]) == ("5", "lora r=256")
    # Paired by seed: 1.5 − 0.25 and 2.5 − 0.5.
    assert scratch["paper's convention"] == "1.625 ± 4.765 / 1.16"
    assert scratch["nats a string, training"].startswith("3.250 ±")
    assert scratch["nats a string, clean"].startswith("4.875 ±")
    assert scratch["missing bits a stored bit"].startswith("8.125 ±")
    assert adapted["paper's convention"] == "1.000"


def test_gaps_need_both_directions_of_a_seed():
    scratch = report.families(LINES)[0]
    assert report.gap(LINES, scratch, 1, "excess_loss") is None
    assert report.gap(LINES[1:], scratch, 5, "excess_loss").mean == 1.25


def test_figures_draw_the_results():
    pytest.importorskip("matplotlib")
    figure = report.excess_figure(LINES, (1, 5))
    assert [ax.get_title() for ax in figure.axes[:2]] == [f"from scratch, K = {K}" for K in (1, 5)]
    drawn = {x.get_label(): x for x in figure.axes[1].get_lines()}
    assert drawn["forward"].get_xdata().tolist() == [0, 10, 20]
    assert drawn["forward"].get_ydata().tolist() == [8.5, 6.0, 1.125]
    assert drawn["inverse"].get_ydata().tolist() == [8.5, 6.0, 6.0]
    seeds = [list(x.get_ydata()) for x in figure.axes[1].get_lines()]
    assert [8.0, 6.0, 0.75] in seeds and [9.0, 6.0, 7.5] in seeds

    figure = report.gap_figure(LINES)
    for ax, gaps in zip(figure.axes, ([1.625, 1.0], [4.875, 3.0]), strict=True):
        for container, value in zip(ax.containers, gaps, strict=True):
            points, _, (bars,) = container
            assert points.get_xdata().tolist() == [5] and points.get_ydata().tolist() == [value]
            (low, high) = bars.get_segments()[0][:, 1]
            width = {1.625: 4.765, 4.875: 14.294}.get(value, 0.0)
            assert ((low + high) / 2, (high - low) / 2) == pytest.approx((value, width), abs=1e-3)
        assert [x.get_label() for x in ax.containers] == ["from scratch", "LoRA, rank 256"]
        assert [0, 0] in [list(line.get_ydata()) for line in ax.get_lines()]  # no gap
    assert artists.entries(figure.legends[0]) == ["from scratch", "LoRA, rank 256"]


def test_bits_are_drawn_with_the_moment_when_half_is_learned():
    pytest.importorskip("matplotlib")
    left, right = report.bits_figure(LINES).axes
    labels = [x.get_label() for x in left.get_lines()]
    tasks = "1 forward, 11.0", "5 forward, 7.0", "5 inverse, 15.0"
    assert labels[:3] == [f"from scratch, K = {task} bits" for task in tasks]
    shares = [1.0, (6 / 8 + 6 / 9) / 2, (0.75 / 8 + 1.5 / 9) / 2]
    assert left.get_lines()[1].get_ydata() == pytest.approx(shares)
    assert right.get_lines()[1].get_xdata() == pytest.approx([7.0, 7.0])
    # From 6 at epoch 10 to 0.75 and 1.5 at epoch 20, half are 4 and 4.5.
    halves = [10 + 10 * 2 / 5.25, 10 + 10 * 1.5 / 4.5]
    assert right.get_lines()[1].get_ydata() == pytest.approx(halves)
    assert np.isnan(right.get_lines()[2].get_ydata()).tolist() == [True, True]
    of_two = report.bits_figure([line for line in LINES if line["K"] == 5]).axes[0].get_lines()
    assert "from scratch, K = 5 forward, 7.0 bits" in [x.get_label() for x in of_two]


def test_the_figure_of_pace_draws_means_from_the_first_epoch_on():
    pytest.importorskip("matplotlib")
    (ax,) = report.pace_figure(LINES).axes
    first, forward, inverse = ax.get_lines()[:3]
    assert first.get_label() == "K = 1 forward, 11.0 bits"
    assert forward.get_label() == "K = 5 forward, 7.0 bits"
    assert inverse.get_label() == "K = 5 inverse, 15.0 bits"
    assert forward.get_xdata().tolist() == [10, 20]
    assert forward.get_ydata().tolist() == [6.0, (0.75 + 1.5) / 2]


def test_bits_are_drawn_for_any_number_of_families():
    pytest.importorskip("matplotlib")
    lines = [_line(5, "A->B", 0, 1.0, run_type="lora", lora_r=rank) for rank in range(1, 12)]
    ranks = report.bits_figure(lines).axes[0].get_lines()  # one task, which is not said
    assert [line.get_label() for line in ranks] == [f"LoRA, rank {n}" for n in range(1, 12)]
    (ax,) = report.bits_figure(lines[:1]).axes  # of one family, the task is
    assert [line.get_label() for line in ax.get_lines()] == ["K = 5 forward"]


def test_the_figure_of_gradients_draws_the_curves():
    pytest.importorskip("matplotlib")
    names = ["cosine", "norm_forward", "norm_inverse", "update_forward", "update_inverse"]
    history = {"eval_step": np.array([0, 4])}
    for number, (name, block) in enumerate((n, b) for n in names for b in ("a", "b", "total")):
        history[f"{name}/{block}"] = np.array([[number + 1.0], [number + 2.0]])
    figure = report.gradients_figure({"K=5,direction=A-_B": history})
    cosine, norm, update = figure.axes
    assert "inverse dashed" in figure.legends[0].get_title().get_text()
    drawn = {(x.get_label(), x.get_linestyle()): x for x in cosine.get_lines()}
    assert drawn["a", "-"].get_ydata().tolist() == [1, 2] and len(drawn) == 2
    assert drawn["b", "-"].get_xdata().tolist() == [0, 4]
    for ax, first in ((norm, 4), (update, 10)):
        y = [(x.get_linestyle(), x.get_ydata().tolist()) for x in ax.get_lines()]
        expected = [("-", first), ("-", first + 1), ("--", first + 3), ("--", first + 4)]
        assert y == [(style, [value, value + 1]) for style, value in expected]


def test_every_published_number_is_said_of_its_regime_and_K():
    published = {
        ("scratch", None): {1: ("", "", " / 0.00"), 5: ("", " / 2.07", " / 1.16"),
                            8: ("", "", " / 0.90")},
        ("finetune", None): {5: ("", " / 1.47", "")},
        ("lora", 256): {5: ("", " / 3.15", "")},
        ("mlp", None): {1: ("", "", " / 0.00"), 5: ("", "", " / 0.22"), 8: ("", "", " / 0.10")},
        ("lora", 8): {},
        ("finetune_reg", None): {},
    }  # fmt: skip
    for (regime, rank), of_K in published.items():
        of = report.Family(regime, rank, None)
        for K in (1, 2, 5, 8):
            said = tuple(of.published(K, column) for column in range(3))
            assert said == of_K.get(K, ("", "", "")), (regime, K)


def test_lines_of_the_mlp_are_known_by_their_keys(tmp_path):
    path = tmp_path / "results.jsonl"
    line = {"arch": "mlp", "K": 5, "direction": "A->B", "seed": 0} | dict.fromkeys(report.UNITS, 1)
    assert report.read_mlp_results("") == []
    path.write_text(json.dumps(line) + "\n")
    assert report.read_mlp_results(str(path)) == [line]
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"more": 2}) + "\n")
    assert report.read_mlp_results(str(path)) == [line, line | {"more": 2}]
    for other in ([1], {key: value for key, value in line.items() if key != "K"}):
        path.write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")
        with pytest.raises(ValueError, match="other lines than those of world_a_mlp"):
            report.read_mlp_results(str(path))


def test_half_is_learned_between_two_evaluations():
    assert excess.half_learned([0, 10, 20], [8.0, 6.0, 2.0]) == 15.0
    assert excess.half_learned([0, 10, 20], [8.0, 4.0, 2.0]) == 10.0
    assert math.isnan(excess.half_learned([0, 10], [8.0, 4.1]))
    assert math.isnan(excess.half_learned([0, 10], [0.0, 0.0]))
