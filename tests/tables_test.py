"""The docs' tables say what result lines that are known by hand say."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dirasym import models
from dirasym.data import relations
from experiments.tables import (
    choice,
    closure,
    common,
    dynamics,
    facts,
    gradients,
    kills,
    likelihood,
    theory,
    toy,
    world_a,
)


@pytest.fixture
def on_file(monkeypatch):
    """Puts lines in place of the files'."""
    files = {}
    monkeypatch.setattr(common, "_read", lambda name: tuple(files[name]))
    return files


def _map(K, direction, seed, curve, train, **more):
    return {
        "K": K,
        "direction": {"forward": "A->B", "inverse": "B->A"}[direction],
        "seed": seed,
        "eval_epochs": [0, 10, 20],
        "epochs": 20,
        f"{world_a.CLEAN}_curve": curve,
        world_a.CLEAN: curve[-1],
        "train_curve": train,
        "excess_nats_per_string_curve": [100 + x for x in train],
        "theoretical_min": np.log(K) if direction == "inverse" else 0.0,
        "bits_to_store_per_pair": 10.0 * K,
        **more,
    }


def _world(**more):
    """Two seeds, in the wrong order; the inverse is 3 and then 5 above, seed 1 one more."""
    rows = []
    for seed in (1, 0):
        for K in (1, 5):
            forward = [8.0, 4.0 + seed, 1.0]
            inverse = [8.0, 7.0 + 2 * seed, 6.0 + seed]
            train = [float(epoch) for epoch in range(20)]
            rows.append(_map(K, "forward", seed, forward, train, **more))
            rows.append(_map(K, "inverse", seed, inverse, [2 * x for x in train], **more))
    return rows


def test_the_published_setting_has_its_gap_by_epoch(on_file):
    curves = {(5, "forward"): [60.0, 9.0, 4.0], (5, "inverse"): [61.0, 27.0, 16.0]}
    curves[1, "forward"] = [62.0, 28.0, 7.0]
    for (K, direction), curve in curves.items():
        train = [float(K * epoch) for epoch in range(20)]
        floor = np.log(5) * (direction == "inverse")
        line = _map(K, direction, 0, curve, train, str_len=8, floor_nats_per_string=floor)
        on_file[f"world_a_gpt2_K{K}_{direction}/results"] = [line]
    assert world_a.published_gap(10) == 18.0 and world_a.published_gap(20) == 12.0
    np.testing.assert_allclose(world_a.published_gap(10, "excess_loss"), -np.log(5))
    np.testing.assert_allclose(world_a.left(5, "inverse"), 1600 / (8 * np.log(36) - np.log(5)))
    np.testing.assert_allclose(world_a.left(1, "forward"), 700 / (8 * np.log(36)))
    table = world_a.published_table(0, 20).splitlines()
    assert table[2] == "| K = 5 forward | 50.0 | 60.00 | 4.00 | 14 % |"
    assert table[4] == "| K = 1 forward | 10.0 | 62.00 | 7.00 | 24 % |"
    gaps = world_a.published_gap_table(10, 20).splitlines()
    assert gaps[2:] == [
        "| paper's convention | −1.61 | −1.61 |",
        "| nats a string, training | 0.00 | 0.00 |",
        "| clean | 18.00 | 12.00 |",
    ]


def test_lora_both_ways_and_more_decay_have_their_rows(on_file):
    on_file["world_a_lora_both/results"] = [
        _map(K, direction, seed, [50.0, 3.0 * K, 20.0 + K + 2 * seed], [0.0] * 20)
        | {"eval_epochs": [20, 40, 60]}
        for K in (1, 5, 8)
        for direction in ("forward", "inverse")
        for seed in (0, 1)
    ]
    rows = world_a.both_ways_table().splitlines()[2:]
    assert rows[0] == "| K = 1 forward | 10.0 | 50.00 ± 0.00 | 3.00 ± 0.00 | 22.00 ± 12.71 |"
    assert rows[5].startswith("| K = 8 inverse | 80.0 | 50.00 ± 0.00 | 24.00 ± 0.00 | 29.00")
    for _, folder, run_type in world_a.REGULARISED:
        on_file.setdefault(f"{folder}/results", []).extend(
            _map(5, direction, 0, [1.0, 2.0, place + 3.0], [0.0] * 20, run_type=run_type)
            | {"eval_epochs": [20, 40, 60]}
            for place, direction in enumerate(("forward", "inverse"))
        )
    rows = world_a.reg_table().splitlines()[2:]
    assert rows[0] == "| 0.01, 0 | forward | 1.00 | 2.00 | 3.00 |"
    assert rows[5] == "| 0.1, 0.1 | inverse | 1.00 | 2.00 | 4.00 |"


def test_gradients_of_both_directions_are_read_from_the_curves(monkeypatch):
    names = {}

    def curves(name):
        number = names.setdefault(name, len(names))
        return {f"{key}/total": np.arange(7) + 10 * number for key in world_a.GRADIENTS}

    monkeypatch.setattr(world_a, "curves", curves)
    rows = world_a.gradient_table().splitlines()[2:]
    assert rows[0].startswith("| K = 1 forward | cosine | 0.0000 | 1.0000 |")
    assert rows[-1].startswith("| K = 5 inverse | update / weight, inverse | 30.0000 |")
    assert rows[-1].endswith("| 35.0000 |")  # the last evaluation's step is 0
    wanted = "world_a_gradients/curves/run_type=scratch,lora_r=None,objective=next_token"
    assert (
        set(names)
        == {
            f"{wanted},K={K},direction={arrow},seed=0" for K in (1, 5) for arrow in ("A-_B", "B-_A")
        }
        or len(names) == 4
    )


def test_facts_told_are_chosen_by_sentences_and_layers(on_file):
    def line(factor, layers, told, seed):
        value = 100.0 * layers + 10 * told + seed + 1000 * (factor == "in_context_more")
        return {"factor": factor, "value": f"depth {layers}, {told} told", "seed": seed} | {
            "train_nll": 0.0, "validation_nll": value + 5, "lowest_validation_nll": value
        }  # fmt: skip

    other = [{"factor": "depth", "value": "1", "seed": 0}]
    on_file |= {f"relations_study/{name}": other for name in ("results", "l2")}
    for factor in ("in_context", "in_context_more"):
        on_file[f"relations_study/{factor}"] = [
            line(factor, layers, told, seed)
            for layers in (1, 2)
            for told in (2, 8)
            for seed in (0, 1)
        ]
    assert dynamics.in_context(2, sentences=700) == [120.0, 121.0, 220.0, 221.0]
    assert dynamics.in_context(8, sentences=7000, layers=2) == [1280.0, 1281.0]
    assert dynamics.in_context(2, "validation_nll", layers=1) == [125.0, 126.0, 1125.0, 1126.0]
    rows = dynamics.in_context_table().splitlines()[2:]
    assert rows[1].startswith("| 700 | 1 | 8 | 0.000 ± 0.000 | 185.500 ± 6.353 | 180.500 ± 6.353")
    assert rows[1].endswith("| 2.08 |") and rows[4].startswith("| 7000 | 1 | 2 |")


def test_facts_drawn_anew_are_tabulated_by_cell(on_file):
    def line(value, told, asked, seed, steps):
        return {"value": value, "seed": seed, "num_facts": told, "num_names": 50} | {
            "num_asked": asked, "train_nll": 1.0, "validation_nll": 2.0, "steps_to_answer": steps,
            "accuracy": told / 10 + seed / 100,
            "accuracy_by_place": [place / 10 + seed / 100 for place in range(told)],
        }  # fmt: skip

    on_file["relations_study/in_context_fresh"] = [
        line("2 told", 2, None, 0, 600),
        line("2 told", 2, None, 1, 900),
        line("near", 4, 2, 0, None),
        line("near", 4, 2, 1, None),
        line("half", 4, 3, 0, 300),
        line("half", 4, 3, 1, None),
    ]
    assert len(dynamics.fresh("near")) == 2
    np.testing.assert_allclose(dynamics.fresh_mean("near"), 0.405)
    np.testing.assert_allclose(dynamics.fresh_mean("near", "validation_nll"), 2)
    assert dynamics.fresh_percent("2 told", "near") == "20, 40"
    np.testing.assert_allclose(dynamics.fresh_places("near"), [0.305, 0.205, 0.105, 0.005])
    rows = dynamics.fresh_table().splitlines()[2:]
    begins = "| 2 | 2 | 50 | 1.000 ± 0.000 | 2.000 ± 0.000 | 0.205 ± 0.064 | 0.69 |"
    assert [row.split(" | ")[1] for row in rows] == ["2", "2", "3"]
    assert rows[0] == f"{begins} 2 of 2, from 600 to 900 |"
    assert rows[1].endswith("| 1.39 | 0 of 2 |")
    assert rows[2].endswith("| 1.39 | 1 of 2, from 300 |")


def test_gaps_of_world_a_are_paired_and_of_their_epoch(on_file):
    on_file["w/results"] = _world()
    assert world_a.gaps("w", 5, 10) == [3.0, 4.0] and world_a.last_gap("w", 5) == [5.0, 6.0]
    # Epoch 10 is the tenth: losses 9 and 18, and ln 5 off the inverse's.
    np.testing.assert_allclose(world_a.gaps("w", 5, 10, "excess_loss"), [9 - np.log(5)] * 2)
    np.testing.assert_allclose(world_a.gaps("w", 1, 10, "excess_loss"), [9, 9])
    assert world_a.gaps("w", 5, 20, "excess_nats_per_string") == [19, 19]
    assert world_a.halves("w", 1, "forward") == [10.0, 12.5]
    table = world_a.excess_table("w").splitlines()
    assert table[2] == "| K = 5 forward | 50.0 | 8.00 | 4.50 | 1.00 |"
    assert table[5] == "| K = 1 inverse | 10.0 | 8.00 | 8.00 | 6.50 |"
    gaps = world_a.gap_table("w").splitlines()
    assert gaps[3] == "| K = 5, nats per string | 3.50 ± 6.35 | 5.50 ± 6.35 |"


def test_the_tax_is_fine_tuned_minus_scratch(on_file):
    tuned = _world(run_type="finetune")
    for line in tuned:
        line[f"{world_a.CLEAN}_curve"] = [
            x + 0.5 + line["seed"] * (line["direction"] == "B->A")
            for x in line[f"{world_a.CLEAN}_curve"]
        ]
    on_file["world_a_regimes/results"] = _world(run_type="scratch") + tuned
    assert world_a.tax(5, "forward", 10) == [0.5, 0.5]
    assert world_a.tax(5, "inverse", 20) == [0.5, 1.5]
    assert world_a.tax_gaps(1) == [[0.0, 1.0], [0.0, 1.0]]


def test_gaps_of_the_mlp_on_1000_pairs(on_file):
    def line(seed, arrow, excess):
        return {"K": 8, "seed": seed, "direction": arrow, world_a.CLEAN: excess}

    on_file["world_a_mlp_1000/results"] = [line(1, "A->B", 2.0), line(0, "B->A", 5.0)]
    on_file["world_a_mlp_1000/results_K8"] = [line(0, "A->B", 1.5), line(1, "B->A", 9.0)]
    assert world_a.mlp_gap_1000(8) == [3.5, 7.0]


def test_the_mlp_at_the_papers_setting_has_the_mean_of_its_seeds(on_file):
    lines = []
    for K in (1, 5, 8):
        for seed in (0, 1):
            for arrow, more in (("A->B", 0.0), ("B->A", 1.0)):
                excess = K + seed + more
                line = {"K": K, "seed": seed, "direction": arrow, "excess_loss": excess / 10}
                line |= {unit: excess for unit in world_a.MLP_UNITS}
                line |= {"floor_nats_per_string": 12.0 * more, "floor_kind": "parallel"}
                line |= {"bits_to_store_per_pair": 9.0 + K, "theoretical_min": 0.5}
                line |= {"eval_epochs": [0, 2], f"{world_a.CLEAN}_curve": [9.0, excess]}
                line |= {"train_curve": [7.0, 0.5 + excess / 10]}
                line |= {"excess_nats_per_string_curve": [7.0, 2 * excess]}
                lines.append(line)
    on_file["world_a_mlp/results"] = lines
    rows = world_a.mlp_table().splitlines()[2:]
    assert rows[0].startswith("| 1 | forward | 0.150 ± 0.635 | 1.50 ± 6.35 |")
    assert rows[0].endswith("| 0.00 | 10.0 |") and rows[5].endswith("| 12.00 (parallel) | 17.0 |")
    assert rows[5].startswith("| 8 | inverse | 0.950 ± 0.635 |")
    gaps = world_a.mlp_gap_table().splitlines()[2:]
    assert gaps[1] == "| 5 | **0.100 ± 0.000** | 0.22 | 2.00 ± 0.00 | 1.00 ± 0.00 |"
    pace = world_a.mlp_pace_table().splitlines()[2:]
    assert pace[2] == "| 8 | 17.0 | 8.50 ± 6.35 |"


def test_the_mlps_pace_by_length_of_strings(on_file):
    def line(seed, arrow, *curve):
        of = {"K": 5, "seed": seed, "direction": arrow, "bits_to_store_per_pair": 9.5}
        return of | {"eval_epochs": [0, 2, 4], f"{world_a.CLEAN}_curve": curve}

    on_file["world_a_mlp_lengths/len4"] = [
        line(1, "A->B", 8.0, 4.0, 0.0),
        line(0, "A->B", 8.0, 6.0, 2.0),
        line(0, "B->A", 6.0, 5.0, 1.0),
    ]
    assert world_a.lengths_table(4).splitlines()[2:] == [
        "| 4 | K = 5 forward | 9.5 | 2.5 ± 6.4 |",  # 2 and 3
        "| 4 | K = 5 inverse | 9.5 | 3.0 |",
    ]
    forward, inverse = (world_a.of_length(4)[5, direction] for direction in world_a.ARROWS)
    assert forward == (9.5, [3.0, 2.0]) and inverse == (9.5, [3.0])
    assert world_a.saved(inverse, forward) == pytest.approx(1 / 6)


def test_halves_of_the_bits_study_are_of_one_kind_of_map(on_file):
    def line(model, number, K, arrow, *curve, letters=36):
        of = {"model": model, "letters": letters, "length": 1, "K": K, "direction": arrow}
        of |= {"map": number, "floor_nats_per_string": 0.0, "eval_epochs": [0, 2, 4]}
        return of | {f"{world_a.CLEAN}_curve": [np.log(letters) * x for x in curve]}

    on_file["world_a_bits/mlp"] = [
        line("mlp", 0, 1, "A->B", 2.0, 0.5, 0.0),
        line("mlp", 1, 1, "A->B", 2.0, 1.0, 0.0),
        line("mlp", 0, 5, "B->A", 2.0, 0.6, 0.4),
        line("mlp", 0, 1, "A->B", 2.0, 1.0, 0.5, letters=6),
    ]
    on_file["world_a_bits/gpt2"] = [line("gpt2", 0, 1, "A->B", 1.0, 0.0, 0.0)]
    on_file["world_a_bits/gpt2_K25"] = [line("gpt2", 0, 25, "A->B", 1.0, 1.0, 0.0)]
    on_file["world_a_bits/gpt2_36x3"] = []
    center, half_width = world_a.half_of("mlp", 36, 1)  # 2 and 3
    assert center == pytest.approx(2.5) and half_width == pytest.approx(12.706 / 2, rel=1e-3)
    assert world_a.half_of("mlp", 36, 1, 5, "inverse").mean == pytest.approx(3.0)
    assert world_a.half_of("mlp", 6, 1).mean == pytest.approx(4.0)
    assert world_a.half_of("gpt2", 36, 1).mean == pytest.approx(1.0)
    assert world_a.half_of("gpt2", 36, 1, 25).mean == pytest.approx(3.0)


def test_gpt2_by_the_number_of_pairs(on_file):
    def line(pairs, number, K, arrow, epoch, **more):
        of = {"letters": 36, "length": 8, "K": K, "direction": arrow, "pairs": pairs}
        of |= {"map": number, "floor_nats_per_string": 0.0, "batch_size": 64}
        curve = [16 * np.log(36), 0.0]  # half of a guess's, 4 ln 36, at 3/4 of the way
        return of | {"eval_epochs": [0, epoch / 0.75], f"{world_a.CLEAN}_curve": curve} | more

    on_file["world_a_bits/gpt2"] = [
        line(1000, 0, 1, "A->B", 12.0),
        line(1000, 0, 1, "A->B", 99.0, letters=6),
        line(1000, 0, 5, "A->B", 8.0),
        line(1000, 0, 5, "A->B", 99.0, length=4),
    ]
    on_file["world_a_bits/gpt2_pairs"] = [
        line(500, 0, 1, "A->B", 5.0),
        line(500, 1, 1, "A->B", 7.0),
        line(2000, 0, 1, "A->B", 36.0),
        line(2000, 0, 5, "B->A", 9.0),
    ]
    on_file["world_a_bits/gpt2_steps"] = [line(500, 0, 1, "A->B", 3.0)]
    assert world_a.pairs_half(1, "forward", 500) == pytest.approx(6.0)
    assert world_a.pairs_half(1, "forward", 1000) == pytest.approx(12.0)
    assert world_a.pairs_half(5, "inverse", 2000) == pytest.approx(9.0)
    assert world_a.pairs_half(5, "forward", 1000) == pytest.approx(8.0)
    in_steps = dict(measure=world_a.world_a_bits.half_steps)  # of 8 and 16 an epoch
    assert world_a.pairs_half(1, "forward", 500, **in_steps) == pytest.approx(48.0)
    assert world_a.pairs_half(1, "forward", 1000, "gpt2_steps", **in_steps) == pytest.approx(192.0)
    assert world_a.pairs_exponent(1, "forward", 500, 1000) == pytest.approx(1.0)
    assert world_a.pairs_exponent(1, "forward", 1000, 2000) == pytest.approx(np.log2(3))
    of_steps = world_a.pairs_exponent(1, "forward", 500, 1000, file="gpt2_steps")
    assert of_steps == pytest.approx(2.0)


def test_bits_that_adapters_stored(on_file):
    line = {"lora_r": 4, "lr": 3e-3, "n_pairs": 1000, "lora_trainable_params": 2000}
    on_file["world_a_lora/long"] = [line | {world_a.CLEAN: 20.0}]
    np.testing.assert_allclose(world_a.lora_stored(4, 20 + np.log(2)), 0.5)
    assert world_a.lora_stored(4, 19.0) == 0  # worse than a guess
    np.testing.assert_allclose(world_a.guess(5), 8 * np.log(36) - np.log(5))


def test_a_cell_of_adapters_is_of_its_rank_rate_and_file(on_file):
    for place, file in enumerate(("grid", "long")):
        on_file[f"world_a_lora/{file}"] = [
            {"lora_r": rank, "lr": rate, "lora_trainable_params": 1000 * rank}
            | {world_a.CLEAN: 100.0 * place + rank + 1000 * rate}
            for rank in world_a.LORA_RANKS[:: 1 + place]
            for rate in list(world_a.LORA_GRID.values())[place : 3 - place]
        ]
    assert world_a.lora("grid", 96, 1e-2)[world_a.CLEAN] == 106
    assert world_a.lora("long", 8, 3e-3)[world_a.CLEAN] == 111
    head, _, *rows = world_a.lora_table().splitlines()
    assert head.startswith("| rank (adapters' parameters) | 2 (2,000) | 4 (4,000) | 8 (8,000) |")
    assert rows[1] == "| 3e-3 | 5.0 | 7.0 | 11.0 | 19.0 | 35.0 | 99.0 |"
    assert rows[3] == "| 3e-3, 300 epochs | 105.0 |  | 111.0 |  | 135.0 |  |"


def test_runs_that_were_cut_are_read_where_they_stood(monkeypatch):
    known = {
        f"facts_mdm_{data}/{data}-mdm-seed1-42-1234, cut at step {step}": {
            "forward_percent": [[1.0, 2.0, 3.0], [step, step + 1, step + 2]],
            "reverse_percent": [[9.0, 9.0, 9.0], [0.0, 0.5, 1.0]],
        }
        for data, step in (("c2p", 1575), ("p2d", 1350))
    }
    monkeypatch.setattr(facts, "history", lambda name: known)
    assert facts.cut("c2p", "forward_percent") == [1575, 1576, 1577]
    assert facts.cut("p2d", "forward_percent") == [1350, 1351, 1352]
    assert facts.cut("p2d", "reverse_percent") == [0.0, 0.5, 1.0]


def test_the_least_width_within_is_of_every_draw(on_file):
    on_file["training_dynamics/quick"] = [
        {"part": "bilinear", "width": width, "seed": seed, "reverse_deviation": deviation}
        for width, both in ((8, (0.3, 0.001)), (16, (0.01, 0.008)), (4, (0.5, 0.4)))
        for seed, deviation in enumerate(both)
    ]
    assert dynamics.widths() == [4, 8, 16]
    assert dynamics.width_within(0.01) == 16 and dynamics.width_within(0.3) == 8


def _study(seed, forward, reverse):
    curves = {"forward/random/ema": forward, "reverse/random/ema": reverse}
    curves |= {"reverse/right_to_left/ema": [x + 9 for x in reverse]}
    curves |= {"reverse/left_to_right/ema": [x - 3 for x in reverse]}
    return {"init": "head_zero", "seed": seed, "eval_step": [0, 250, 500, 750]} | curves


def test_plateaus_peaks_and_ends_of_the_toy_study(on_file):
    for name in ("results", "results_seed_2", "results_unit"):
        on_file[f"toy_study/{name}"] = []
    on_file["toy_study/results_zero_heads"] = [
        _study(2, [0, 1, 12, 90], [30, 2, 7, 4]),
        _study(0, [0, 1, 2, 0.5], [40, 0, 0, 1]),
    ]
    heads = ("head_zero",)
    assert [toy.learns(line) for line in toy.study("head_zero")] == [False, True]
    assert toy.leaves_at(toy.study("head_zero")[1]) == 250
    assert toy.peaks(heads) == [7] and toy.ends(heads) == [4]  # 30 is of step 0
    assert toy.at_peak(heads) == ({500}, [12])
    order = toy.column_at_end("head_zero", "right_to_left")
    assert order.tolist() == [10, 13]
    short = {**_study(0, [0, 99], [0, 50]), "eval_step": [0, 250]}
    on_file["toy_study/results"] = [short]
    assert len(toy.study("head_zero")) == 2  # the longest runs alone


def test_scatter_is_over_evaluations_from_step_500(on_file):
    raw, ema = [0, 99, 10, 30, 20], [0, 99, 10, 12, 11]
    on_file["toy_study/results_3000_steps"] = [
        {"seed": 0, "reverse/random/raw": raw, "reverse/random/ema": ema}
    ]
    np.testing.assert_allclose(toy.scatter(), [(10, 1)])


def test_reverse_accuracy_from_a_step_on(on_file):
    on_file["toy_study/results_3000_steps"] = [_study(seed, [], [30, seed, 7]) for seed in (1, 0)]
    assert toy.over_steps(250) == [[0, 7], [1, 7]]


def test_the_panel_is_read_at_the_end_from_the_second_position_on(monkeypatch):
    def of(path):
        assert path.startswith("toy_reversal/curves/model=") and ",length=20,seed=" in path
        shown, other = ("ema", "raw") if "model=mdm" in path else ("raw", "ema")
        seed = int(path[-1])
        right, wrong = np.array([[0, 0, 0], [0.5, 0.6, 0.1 + seed]]), np.full((2, 3), 0.2)
        found = {f"panel_right_{shown}": right, f"panel_wrong_{shown}": wrong}
        return found | {f"panel_{name}_{other}": 1 - wrong for name in ("right", "wrong")}

    monkeypatch.setattr(toy, "curves", of)
    monkeypatch.setattr(toy, "PANEL_SEEDS", {"mdm": (0, 1), "arm": (1,)})
    assert toy.preferred("mdm") == [1, 2] and toy.preferred("arm") == [2]
    np.testing.assert_allclose(toy.right_over_wrong("mdm"), [3, 0.5, 3, 5.5])
    np.testing.assert_allclose(toy.right_over_wrong("arm"), [3, 5.5])


def test_generations_have_a_standard_error_over_26_letters():
    assert toy.sampling_error(25) == pytest.approx(100 * 0.5 / 650**0.5)


def test_accuracy_of_facts_has_its_wilson_interval(on_file):
    line = {"forward_percent": 96.8, "reverse_percent": 0.4, "forward_p": 0.5, "reverse_p": 0.01}
    line |= {"forward_rank": 1.0, "reverse_rank": 20.5}
    on_file["facts_smollm2_arm/results"] = [line | {"seed": seed} for seed in (1234, 1, 42)]
    rows = facts.smollm2_table().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 42", "| 1234"]
    assert rows[0].endswith("| 96.8 (93.8 to 98.4) | 0.4 (0.1 to 2.2) | 0.500 | 0.010 | 1 | 20.5 |")


def test_a_reading_is_compared_with_what_facts_recorded(on_file, monkeypatch):
    keys = facts.READ["either"] | facts.READ["trained"]
    measures = {name: 0.5 + number for number, name in enumerate(keys)}
    of = {f"{way}_{name}": [x, x - 0.25, x + 0.25] for way in facts.DIRECTIONS
          for name, x in measures.items()}  # fmt: skip
    wrong = {f"{way}_{name}": [77.0] * 3 for way in facts.DIRECTIONS for name in measures}
    on_file["facts_smollm2_arm/readings"] = [
        wrong
        | {f"{way}_{name}": of[f"{way}_{name}"] for way in facts.DIRECTIONS for name in asked}
        | {"adapters": seed, "parents": parents}
        for parents, asked in facts.READ.items()
        for seed in (None, 42)
    ]
    known = {
        f"{way}_{key}": np.array([scale * measures[name], 7.0, scale * measures[name]])
        for way in facts.DIRECTIONS
        for name, (key, scale) in keys.items()
    }
    assert known["reverse_percent"][0] == 50 and known["forward_p"][2] == 4.5
    asked = []
    monkeypatch.setattr(facts, "curves", lambda path: asked.append(path) or known)
    assert facts.readings_apart() == (24, 0)
    assert [path.rsplit("=", 1)[1] for path in asked] == ["1", "42"] * 2
    known["reverse_rank"] = np.array([5.5, 0, 11.0])  # of the second alone, and twice as much
    assert facts.readings_apart() == (24, 0.5)


def test_readings_stand_in_a_row_each(on_file):
    numbers = {"accuracy": 0.5, "p_true": 0.25, "rank": 3.0}
    of = {f"{way}_{name}": [x, x - 0.25, x + 0.25] for way in facts.DIRECTIONS
          for name, x in numbers.items()}  # fmt: skip
    other = {key: [0.0] * 3 for key in of} | {"adapters": 1, "parents": "trained"}
    read = [of | {"adapters": seed, "parents": "either"} for seed in (None, 42)]
    on_file["facts_smollm2_arm/readings"] = [other, *read]
    first, second = facts.readings_table().splitlines()[2:]
    assert first.startswith(
        "| before | 50.0 (25.0 to 75.0) | 50.0 (25.0 to 75.0) | 0.250 (0.000 to"
    )
    assert second.startswith("| after, seed 42 |") and second.endswith("3 (3 to 3) |")


def test_names_at_once_gain_seed_by_seed(on_file):
    for size in (60, 300):
        for name, values in (("names", (10, 20)), ("names_at_once", (15 + size, 40))):
            on_file[f"facts_names/w2b{size}_{name}"] = [
                {"seed": seed, "reverse_percent": x} for seed, x in enumerate(values)
            ]
    assert facts.at_once_gain() == [65, 20, 305, 20]


def test_single_facts_are_read_at_their_moment(monkeypatch):
    p_TE = np.array([[0.1, 0.3], [0.2, 0.6], [0.5, 0.9]])
    rank_TE = np.array([[1, 1, 1, 1], [1, 3, 4, 9]])
    asked = []

    def known(path):
        asked.append(path)
        return {"paired_forward_p": p_TE, "paired_reverse_p": p_TE / 2, "reverse_rank_E": rank_TE}

    mean_LNT = np.array([[[1.0, 2.0], [3.0, 4.0]], [[-1.0, 1.0], [0.0, 0.0]]])
    monkeypatch.setattr(facts, "curves", lambda path: {"attention_mean": mean_LNT})
    np.testing.assert_allclose(facts.attention_by_layer(), [2.5, 0])
    monkeypatch.setattr(facts, "curves", known)
    np.testing.assert_allclose(facts.paired("mdm", "forward", 0), [0.2] * 3)
    np.testing.assert_allclose(facts.paired("mdm", "reverse", -1), [0.35] * 3)
    assert facts.ranked_within("arm", 3) == [50.0] * 3
    assert {path.split("model=")[1][:3] for path in asked[:6]} == {"mdm"}
    assert asked[6:] == [f"facts_quick/curves/data=p2c,model=arm,seed={n}" for n in (1, 42, 1234)]


def test_positions_and_other_facts_stand_in_their_rows(on_file, monkeypatch):
    for place, file in enumerate(facts.POSITIONS):
        on_file[file] = [
            {"model": model, "seed": seed, "forward_percent": 90.0 + place,
             "reverse_percent": 10.0 * seed, "reverse_choice_percent": choice}
            for model, choice in (("mdm", 50.0), ("arm", 0.0)) for seed in (0, 1)
        ]  # fmt: skip
    rows = facts.positions_table().splitlines()[2:]
    assert rows[0] == "| none | 3600 | 90, 90 | 0, 10 | 50, 50 |"
    assert rows[4] == "| RoPE | 1800 | 94, 94 | 0, 10 | 50, 50 |"
    for place, data in enumerate(("trex", "p2d")):
        of = dict.fromkeys(("forward_percent", "reverse_percent", "reverse_choice_percent"), place)
        ranks = [{"seed": 1, "reverse_rank": 9.0}, {"seed": 0, "reverse_rank": 2.5}]
        on_file[f"facts_other/{data}"] = [of | rank for rank in ranks]
    cosine_TE = np.array([[9.0, 9.0, 9.0], [0.1, 0.2, 0.9]])
    known = {"gradient_cosine_total": cosine_TE, "attention_mean": np.array([[[0.25, np.nan]]])}
    monkeypatch.setattr(facts, "curves", lambda path: known)
    rows = facts.other_table().splitlines()[2:]
    same = "0.20, 0.20, 0.20 | 0.25, 0.25, 0.25 |"
    assert rows == [f"| T-REx-shaped | 0, 0 | 0, 0 | 0, 0 | 2.5, 9 | {same}",
                    f"| Person–description | 1, 1 | 1, 1 | 1, 1 | 2.5, 9 | {same}"]  # fmt: skip
    assert facts.rank_span([9.0, 2.5, 3.0]) == "2.5 to 9"


def test_correlations_of_scores_are_counted_after_a_mean_over_heads(monkeypatch):
    mean_NHD = np.array([[[0.3, -0.1, 0.5], [-0.1, -0.1, -0.6]], [[0.1, 0, 0], [0.1, 0.2, 0]]])
    paths = []
    monkeypatch.setattr(facts, "curves", lambda x: paths.append(x) or {"attention_mean": mean_NHD})
    assert facts.correlated("somewhere", 42) == (3, 6)
    assert paths == ["somewhere/curves/data=p2c,model=mdm,seed=42"]


def test_a_guess_is_among_the_first_words_of_the_reverse_answers():
    assert facts.reverse_guess("trex") == pytest.approx(100 / 90)  # a subject each
    assert facts.reverse_guess("p2d") == 10  # ten persons


def test_cosines_of_facts_leave_out_step_0():
    cosine_STE = np.array([[[-0.5, -0.9, -0.7], [0.1, -0.2, 0.6], [0.4, 0.3, 0.2]]])
    assert facts.negative(cosine_STE) == 1
    np.testing.assert_allclose(facts.median(cosine_STE), [0.1, 0.3])


def test_kills_are_added_up(on_file):
    keys = ("experiment", "kills", "at_changes", "with_checkpoint", "finished", "full_disks")
    killed, full = [("dial", 18, 9, 12, 6), ("causes", 4, 2, 1, 3)], [("dial", 0, 0, 0, 2, 5)]
    on_file["crash_test/results"] = [dict(zip(keys, row, strict=False)) for row in killed]
    on_file["crash_test/full_disks"] = [dict(zip(keys, row, strict=True)) for row in full]
    assert [kills.total(key) for key in keys[1:]] == [22, 11, 13, 11, 5]
    table = kills.kills_table().splitlines()
    assert table[0].endswith("| at a change of its files | with a checkpoint | full disks | ends |")
    assert table[2:] == ["| dial | 18 | 9 | 12 | 5 | 8 |", "| causes | 4 | 2 | 1 | 0 | 3 |",
                         "| all | 22 | 11 | 13 | 5 | 11 |"]  # fmt: skip


def test_curves_of_the_full_model_are_read_a_seed_each(monkeypatch):
    def of(path):
        seed, length = int(path[-1]), int(path.partition("length=")[2][:2])
        return {
            "correlation_mean": np.array([[[0.9, seed - 1.0, 0.5]]]),
            "cosine/total": np.array([[1.0, 1.0, 1.0], [0.0, 0.1 * seed, 1.0]]),
            "weight_forward_all": np.array([[[0.0, 0.0]], [[length / 100, seed / 10]]]),
        }

    monkeypatch.setattr(theory, "curves", of)
    assert theory.lowest_correlations(10) == [-1.0, 0.0, 0.5]
    np.testing.assert_allclose(theory.last_cosines(10), [0.0, 0.1, 0.2])
    found = theory.weights("forward", 1)
    ours = [(length / 100 + seed / 10) / 2 for length in (10, 20, 40) for seed in range(3)]
    np.testing.assert_allclose(found, ours)


def test_the_reverse_of_table_2_at_step_3000_is_compared_with_the_paper(on_file):
    ours = {("mdm", 10): (46.10, 44.10), ("mdm", 20): (50.70, 50.70), ("arm", 10): (0.0, 0.0)}
    lines = [  # the paper has 43.10, 55.70 and 0
        {"model": model, "length": length, "seed": seed, "final_reverse_percent": x}
        | {"final_forward_percent": 90.0 + seed, "reverse_percent": 7.0, "forward_percent": 8.0}
        | {"final_percent_reverse_raw": 3.0 + 2 * seed}
        for (model, length), of in ours.items()
        for seed, x in enumerate(of)
    ]
    on_file.update((name, []) for name in toy.LONGER)
    on_file.update({toy.LONGER[0]: lines[:3], toy.LONGER[-1]: lines[3:]})
    np.testing.assert_allclose(toy.excess_of_paper(), (-5.0, 2.0))
    np.testing.assert_allclose(toy.excess_of_paper("forward"), (90.5 - 99.31, 90.5 - 97.36))
    assert toy.longer_lengths() == [10, 20] and toy.longer_lengths("arm") == [10]
    assert toy.parted(46) == ([44.10], [46.10, 50.70, 50.70]) and toy.parted()[0] == []
    assert toy.all_at_1000() == [7.0] * 4
    rows = toy.longer_table().splitlines()[2:]
    first = "| 10 | MDM | 2 | 99.31 | 90.5 ± 6.4 | 43.10 | 45.1 ± 12.7 | 44, 46 | 7.0 ± 0.0 |"
    assert rows[0] == f"{first} 4.0 ± 12.7 |"
    assert [row[:12] for row in rows[1:]] == ["| 20 | MDM |", "| 10 | ARM |"]
    assert "| 99.83 | 90.5 ± 6.4 | 0.00 | 0.0 ± 0.0 | 0, 0 |" in rows[2]


def test_the_course_of_a_seed_is_its_curve_where_that_is_on_file(on_file, monkeypatch):
    monkeypatch.setattr(toy, "LONGER", ("toy_reversal/x", "table_2_a/results", "toy/results_arm"))
    line = {"model": "mdm", "reverse_percent": 50.0, "final_reverse_percent": 9.0}
    on_file["toy_reversal/x"] = [line | {"length": 10, "seed": 0}]
    on_file["table_2_a/results"] = [line | {"length": n, "seed": 3} for n in (10, 20)]
    on_file["toy/results_arm"] = [line | {"model": "arm", "length": 10, "seed": 0}]
    asked = []

    def of(path):
        asked.append(path)
        ends = np.array([1.0, 55.0, 50.0, 30.0, 9.0 if "=10" in path else 60.0])
        return {"eval_step": np.array([0, 500, 1000, 2000, 3000]), "percent_reverse_ema": ends}

    monkeypatch.setattr(toy, "curves", of)
    steps = [500, 1000, 2000, 3000]
    assert toy.courses() == {
        10: [([1000, 3000], [50.0, 9.0]), (steps, [55.0, 50.0, 30.0, 9.0])],
        20: [(steps, [55.0, 50.0, 30.0, 60.0])],
    }
    assert asked[0] == "table_2_a/curves/model=mdm,length=10,seed=3"
    assert toy.falls() == [[50.0, 30.0, 9.0]]


def test_alignment_at_equal_probability_is_between_two_evaluations(on_file, monkeypatch):
    asked = []
    cosine_TE = np.array([[1.0, 1.0, 0.0], [0.9, 0.8, 0.8], [0.1, 0.2, 0.9], [0.5, 0.5, 0.5]])
    of = {"p_forward": np.array([0.3, 0.4, 0.8, 0.6]), "cosine/total": cosine_TE}
    monkeypatch.setattr(theory, "curves", lambda path: asked.append(path) or of)
    assert theory.at_level(2, 7, 0.25) == 1.0  # at once
    assert theory.at_level(2, 7, 0.5) == pytest.approx(0.8 - 0.25 * 0.6)
    assert theory.at_level(2, 7, 0.8) == pytest.approx(0.2) and theory.at_level(2, 7, 0.9) is None
    assert asked[0].endswith("depth_curves/part=full,model=mdm,length=10,layers=2,seed=7")
    on_file["gradient_alignment/depth"] = [{"layers": n, "seed": s} for n in (1, 4) for s in (0, 1)]
    of["p_forward"] = of["p_forward"] - 0.1
    rows = theory.equal_depth_table().splitlines()[2:]
    assert rows == [
        "| 1 | 0.90, 0.90 | 0.50, 0.50 | –, – |",
        "| 4 | 0.90, 0.90 | 0.50, 0.50 | –, – |",
    ]
    assert {path[-1] for path in asked[-6:]} == {"0", "1"}


def test_numbers_of_the_theory(on_file):
    on_file["theory/results"] = [
        {"what": "trace", "width": 32, "smallest": 0.2},
        {"what": "trace", "width": 16, "smallest": -0.03},
        {"what": "proposition_b8", "width": 512, "draws": 400, "failed": 1, "bound": 0.9},
        {"what": "proposition_b8", "width": 16, "draws": 400, "failed": 6, "bound": -1.6},
        {"what": "left_out", "block": "W_Q"}
        | {"lower_quartile": 0.5, "median": 1.25, "upper_quartile": 4.0},
    ]
    bounds = {0.98138: 0.981, 0.97699: 0.977, 0.97196: 0.971, 0.95461: 0.954}
    on_file["rope_bounds/results"] = [
        {"what": "table_3", "bound": bound, "paper": paper, "printed": 0.981}
        for bound, paper in bounds.items()
    ]
    assert theory.table_3_agrees() == (1, 4) and theory.table_3_otherwise() == (3, 2)
    assert theory.traces() == "−0.030 at D = 16, 0.200 at D = 32"
    assert theory.left_out("W_Q") == "125 % (quartiles 50 and 400)"
    assert theory.power(2.44e-13) == "2.4e-13" and theory.power(1.0) == "1.0e0"
    rows = theory.b8_table().splitlines()[2:]
    assert rows == ["| 16 | 400 | 6 | 1.50 | vacuous |", "| 512 | 400 | 1 | 0.25 | 0.10 |"]


def test_the_decay_at_which_a_closure_is_unlearned(on_file):
    told = {(0, "1"): 100, (0, "4"): 96, (0, "5"): 34, (2, "3"): 80, (2, "1"): 95, (6, "2"): 94}
    on_file["closure/results"] = [
        {"closure": closure, "weight_decay": decay, "seed": seed, "train_accuracy": x / 100 + way}
        for (closure, decay), x in told.items()
        for seed, way in enumerate((0.005, -0.001))
    ]
    assert closure.unlearned(0) == "5" and closure.unlearned(2) == "3"
    assert closure.unlearned(0, 2, 6) == "2"


def test_predictions_of_other_widths_are_decided_by_their_thresholds(on_file):
    def cells(
        width, told=lambda closure, decay: 1.0, reverse=lambda closure, decay: 0.0, decays="01235"
    ):
        return [
            {"width": width, "closure": closure, "weight_decay": decay, "seed": seed}
            | {"train_accuracy": told(closure, int(decay)), "probe_hits": 0.5}
            | {"reverse_accuracy": reverse(closure, int(decay)) + seed / 100 * (closure == 2)}
            for closure in (0, 2, 4, 6)
            for decay in decays
            for seed in (0, 1, 2)
        ]

    def known(closure, decay):
        return 0.94 if decay >= (3 if closure else 5) else 0.96

    def answers(closure, decay):
        return {0: 0.0, 2: 0.5 + decay / 10, 4: 0.9, 6: 0.95}[closure]

    on_file["closure/results"] = cells(64)
    on_file["closure/width_32"] = cells(32, known, answers)
    on_file["closure/width_128"] = cells(
        128, lambda closure, decay: 0.94 * (decay > 2), lambda *_: 0.25, "01"
    )
    on_file["closure/width_128_rest"] = []
    on_file["closure/width_128_more"] = cells(
        128, lambda closure, decay: 0.94, lambda *_: 0.25, "235"
    )
    on_file["closure/width_256"] = cells(
        256, reverse=lambda closure, decay: 0.1 + 0.1 * decay + 0.85 * (closure == 6), decays="012"
    )
    every = closure.predictions()
    assert [row[0][:2] for row in every[1:4]] == ["2.", "3.", "4."]
    said = [row[1:] for row in every if row[0][:2] not in ("2.", "3.", "4.")]
    assert [verdict for _, verdict in said] == [
        *("holds", "undecided"),  # no cell of width 128 learns
        *("holds", "fails"),
        *("holds", "undecided"),
        *("holds", "fails"),
        *("fails", "holds"),
        "undecided",  # 20 points are not more than 20
        "holds",
    ]
    assert said[9][0] == "−15.0 (−15.0 to −15.0)" and said[10][0] == "20.0 (20.0 to 20.0)"
    on_file["closure/width_256"] = cells(256, reverse=lambda *_: 0.9, decays="012")
    said = [row[1:] for row in closure.predictions() if row[0][:2] not in ("2.", "3.", "4.")]
    assert [verdict for _, verdict in said[9:]] == ["fails", "fails", "undecided"]
    assert said[2][0] == "95.0 (95.0 to 95.0)" and said[4][0] == "10.0 (10.0 to 10.0)"
    assert said[6][0] == "5 at closure 0, 3 at closure 2, 3 at closure 4, 3 at closure 6"
    assert said[8][0] == "−25.0 (−25.0 to −25.0)"
    rows = closure.widths_table().splitlines()[2:]
    assert len(rows) == 16
    assert rows[1] == "| 32 | 2 | 51.0 ± 2.5 | 61.0 ± 2.5 | 10.0 ± 0.0 | 3 |"
    assert rows[4].endswith("| none of 0, 1, 2, 3, 5 |")


def test_guesses_of_first_tokens_are_counted(on_file):
    tokens = [" Mary", " Jo", " Mary", " Al"]
    on_file["facts_smollm2_h100/first_tokens"] = [
        {"question": i, "child": child, "parent": parent}
        for i, (child, parent) in enumerate(zip([" Al", " Jo", " Al", " Al"], tokens, strict=True))
    ]
    assert facts.one_name() == ("Mary", 50.0)
    assert facts.child_repeated() == 50.0


def test_the_papers_numbers_of_a_model(monkeypatch):
    monkeypatch.setattr(facts.page, "PAPER", {"p2c": [[1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 9]]})
    assert facts.paper("p2c", "LLaDA") == "2.0 / 3.0"
    assert facts.paper("p2c", "Qwen") == "6.0 / 7.5"


def test_published_gaps_stand_in_one_unit(on_file, monkeypatch):
    for K, direction in world_a.PUBLISHED:
        line = {"K": K, "direction": world_a.ARROWS[direction], "seed": 0, "tokens_per_target": 6.0}
        on_file[f"world_a_gpt2_K{K}_{direction}/results"] = [line | {"total_params": 10**9}]
    on_file["world_a_mlp/results"] = [
        {"K": K, "direction": way, "seed": seed, "floor_nats_per_string": floor + seed}
        | {"bits_to_store_per_pair": 80 / K, "eval_epochs": [0, 20], "epochs": 20}
        | {f"{world_a.CLEAN}_curve": [28.0, 4.0 - K / 5 + seed]}
        for K, floor in ((5, 9.5), (8, 11.5))
        for seed in (0, 1)
        for way in ("A->B", "B->A")
    ]
    assert world_a.checkpoint_gigabytes() == 12.0
    paper = {("scratch", None, 5): (None, 2.07, 1.5), ("mlp", None, 8): (None, None, 0.25)}
    more = {("mlp", None, 1): (None, None, 0.0), ("lora", 256, 5): (None, 3.15, None)}
    monkeypatch.setattr(world_a.world_a_report, "PAPER", paper | more)
    # (1.5 + ln 5)·6 − ln 5, and (0.25 + ln 8)·8 − 12.
    assert world_a.one_unit_table().splitlines()[2:] == [
        "| GPT-2 scratch | 5 | 1.5 | (1.5 + 1.61)·6 − 1.61 = 17.0 |",
        "| MLP | 8 | 0.25 | (0.25 + 2.08)·8 − 12 = 6.6 |",
    ]
    assert world_a.fewer_bits(5, 8) == 1.6
    # At epoch 20 the excess is 3.5 and 2.9 in the mean of both seeds.
    np.testing.assert_allclose(world_a.lower(5, 8, 20), 100 * 0.6 / 3.5)


def test_how_far_variances_are_known(on_file, monkeypatch):
    on_file["likelihood/results"] = [{"kind": "stratified", "repeats": 51}]
    monkeypatch.setattr(likelihood, "TEXTS", 4)
    assert likelihood.draws() == 51 and likelihood.known_to() == 10.0


def test_what_a_matrix_of_gradients_takes_is_counted_by_hand():
    """T·(C + F) entries a kernel, in bfloat16; a norm's scale in float32; T rows and T ids."""
    T, D, M, V, layers = 5, 8, 12, 30, 3
    shape = dict(num_layers=layers, width=D, num_heads=2, num_kv_heads=1, mlp_width=M, max_len=T)
    lowest = dict(scan_layers=True, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    config = models.llama(V, rope_scaling=None, **shape, **lowest)
    found = gradients.sizes(config, T, (40, 40), (2**14, 2**20))
    kernels = layers * (2 * (D + D) + 2 * (D + D // 2) + 3 * (D + M)) + (D + V) + D
    scales = D * (2 * layers + 1)
    assert found.entries == T * kernels + T + scales + 1  # and the unit of its size
    assert found.bytes == 2 * T * kernels + 4 * (T + scales + 1)
    assert found.parameters == 2 * D * V + scales + layers * (3 * D * D + 3 * D * M)
    side = 3 * 2**14 // 4 // (2 * found.bytes)
    rows = -(-40 // side)  # strips of equal height
    assert found.tiles == {2**14: (-(-40 // rows),) * 2, 2**20: (40, 40)}


CHOICES = {  # withheld choice of each cell, a seed each
    "learning_rate": {"0.0003": (3, 4, 5), "0.001": (95, 96, 97), "0.003": (99, 99, 99)},
    "learning_rate_24": {
        "0.001": (5, 10, 15),
        "0.01": (45, 40, 65),
        "0.01, untied": (9, 5, 7),
        "0.01, dropout 0.1": (66, 62, 84),
    },
    "head": {
        "tied": (95, 96, 97),
        "untied": (48, 51, 50),
        "tied, frozen embeddings": (1, 2, 3),
    },
    "family": {"mlp": (2, 3, 4), "gru": (9, 10, 11), "masked": (60, 70, 61)},
    "share_both_ways": {"0.1": (10, 12, 14), "0.7": (40, 41, 45)},
}


def _choices(nll, **changed):
    cells = {factor: dict(of) for factor, of in CHOICES.items()}
    cells["learning_rate"]["0.01"] = (92, 92, 92)
    for factor, of in changed.items():
        cells[factor].update(of)
    return [
        {"factor": factor, "value": value, "seed": seed, "choice_withheld": float(percent)}
        | {"validation_nll": nll + seed + len(value), "uniform_nll": 5.3}
        for factor, of in cells.items()
        for value, percents in of.items()
        for seed, percent in enumerate(percents)
    ]


def _published(*seeds):
    return [
        {"seed": seed, "epochs_to_learn": when, "validation_nll": nll, "choice_withheld": percent}
        | {"uniform_nll": 5.3}
        for seed, (when, nll, percent) in enumerate(seeds)
    ]


def test_predictions_of_choice_are_decided_as_the_page_says(on_file):
    on_file.update(dict.fromkeys(choice.FILES, ()))
    on_file["relations_study/choice"] = _choices(nll=0.83)
    on_file[choice.PUBLISHED] = _published((80, 9.0, 60.0), (90, 6.0, 70.0))
    on_file[choice.CHAIN] = [_published((50, 5.4, 21.0))[0] | {"uniform_nll": 5.45}]
    on_file[choice.IN_CONTEXT] = [{"lowest_validation_nll": 0.49}]
    told, decided = zip(*(row[1:] for row in choice.predictions()), strict=True)
    assert [x[0] for x in decided] == list("huhuhfhhhhuhufhh")  # holds, undecided, fails
    assert told[0] == "92.0 (92.0 to 92.0)" and told[1] == "49.7 (45.9 to 53.5)"
    high, low = np.array([40, 41, 45]), np.array([10, 12, 14])
    mean, variances = high.mean() - low.mean(), [x.var(ddof=1) / 3 for x in (high, low)]
    freedom = sum(variances) ** 2 / sum(x**2 / 2 for x in variances)
    half = scipy.stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    assert told[2] == f"{mean:.1f} ({mean - half:.1f} to {mean + half:.1f})"
    gains = np.array([40, 30, 50])  # seed by seed
    half = 4.3027 * gains.std(ddof=1) / 3**0.5
    assert told[3] == f"40.0 ({40 - half:.1f} to {40 + half:.1f})"
    assert told[4].startswith("7.0 (") and told[5] == "4.83"
    assert told[6:9] == ("epoch 80, epoch 90", "9.00, 6.00", "60.0, 70.0")
    assert told[9].startswith("10.0 (7.5 to") and told[11].startswith("2.0 (")
    assert told[12].startswith("20.7 (")
    assert told[13:] == ("epoch 50; 5.40", "21.0", "0.490")


def test_both_halves_of_a_prediction_must_hold():
    for when, nll, decided in ((50, 5.4, "holds"), (None, 5.4, "fails"), (50, 5.3, "fails")):
        assert choice.both(_published((when, nll, 0.0)))[1] == decided


def test_other_numbers_decide_them_otherwise(on_file):
    on_file.update(dict.fromkeys(choice.FILES, ()))
    on_file["relations_study/choice"] = _choices(
        nll=5.4,
        learning_rate={"0.01": (80, 81, 82)},
        learning_rate_24={"0.01": (6, 11, 16), "0.01, untied": (90, 91, 92)},
        head={"untied": (90, 91, 92), "tied, frozen embeddings": (60, 61, 62)},
        # One that is wholly above 20 fails the two, though the other reaches higher.
        family={"gru": (30, 31, 32), "mlp": (0, 60, 30), "masked": (40, 41, 42)},
        share_both_ways={"0.7": (10, 12, 14)},
    )
    on_file[choice.PUBLISHED] = _published((80, 9.0, 60.0), (None, 5.2, 50.0))
    on_file[choice.CHAIN] = _published((None, 5.2, 20.0))
    on_file[choice.IN_CONTEXT] = [{"lowest_validation_nll": 0.51}]
    assert [row[2][0] for row in choice.predictions()] == list("fffffhffffffhfff")


def test_a_row_of_choice_is_its_cell_and_a_guess_one_of_the_withheld_answers(on_file):
    lines = _choices(nll=1.0)
    for line in lines:
        line |= dict.fromkeys(choice.COLUMNS.values(), 3.0) | {
            "choice_withheld": line["choice_withheld"]
        }
    on_file.update(dict.fromkeys(choice.FILES, ()) | {"relations_study/choice_24": lines})
    *_, row = choice.factor_table("share_both_ways").splitlines()
    cells = [cell.strip() for cell in row.strip("| ").split(" | ")]
    assert cells[0] == "0.7" and cells[1].startswith("3.00 ±")
    assert cells[4:6] == ["3.0, 3.0, 3.0", "40.0, 41.0, 45.0"]  # seed by seed
    withheld = relations.reversal(800).panels["withheld"]
    assert cells[-1] == f"{100 / len(withheld):.1f}"
    assert choice.guess(0.1) < choice.guess(0.7)
    known = dict.fromkeys(choice.COLUMNS.values(), 7.0)
    on_file[choice.PUBLISHED] = [known | {"seed": 5, "task": "reversal"}]
    on_file[choice.CHAIN] = [{"seed": 0, "task": "chain", "train_nll": 2.0}]
    on_file[choice.IN_CONTEXT] = [known | {"seed": 1, "task": "icl"}]
    found = [row.strip("| ").split(" | ") for row in choice.published_table().splitlines()[2:]]
    assert found[0] == ["reversal", "5", *["7.00"] * 7, cells[-1]]
    assert found[1] == ["chain", "0", "2.00", *["–"] * 6, "1.7"]
    assert found[2][-1] == "1.0"
