"""Every number of causes_facts is that of models, gradients and histories that are known."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis import attention
from dirasym.data import facts
from experiments import causes_facts as page
from experiments.systems import causes, causes_facts
from experiments.systems.causes import Cell
from experiments.systems.causes_facts import Task

SMALL = dict(num_pairs=4, both_ways=3, width=8, heads=2, steps=10, eval_every=2, batch_size=5)
# Logit of the first word of the true name, and of another name of that side, by question.
KNOWN = {"forward": (3.0, 0.0), "reverse": (1.0, 2.0), "source": (2.0, -1.0)}
CELLS = [Cell(), Cell("causal", "next_token"), Cell("causal", predicted="B")]


def _config(**more):
    return page.Config(**SMALL | dict(cells=("bidirectional",)) | more)


def _people(task):
    """(first words of parents, of children) of the pairs that are asked, as ids."""
    told = task.config.facts
    return tuple(
        [ids[0] for ids in task.names(queries)] for queries in (told.reverse, told.forward)
    )


def _known(task):
    """A model that answers the three questions as KNOWN says, times its parameter; else 0."""
    parents, children = _people(task)
    num, mask = task.config.tokenizer.vocab_size, task.config.tokenizer.mask_id

    def logits(tokens):
        tokens = np.asarray(tokens)
        found = np.zeros((*tokens.shape, num), np.float32)
        for row, place in np.ndindex(*tokens.shape):
            seen = tokens[row, : place + 1] if task.cell.reads_before else tokens[row]
            asks = task.cell.reads_before or tokens[row, place] == mask
            given = [t for t in seen if t in parents + children]
            if not asks or len(given) > 1:
                continue
            if not given:
                name, own = "source", parents[row % len(parents)]
            elif given[0] in parents:
                name, own = "forward", children[parents.index(given[0])]
            else:
                behind = list(tokens[row]).index(given[0]) < place
                name, own = "reverse" if behind else "source", parents[children.index(given[0])]
            side = children if name == "forward" else parents
            rival = side[(side.index(own) + 1) % len(side)]
            found[row, place, own], found[row, place, rival] = KNOWN[name]
        return found

    def apply_fn(params, tokens_BL, valid_BL=None):  # all are
        shape = jax.ShapeDtypeStruct((*tokens_BL.shape, num), jnp.float32)
        return params["size"] * jax.pure_callback(logits, shape, tokens_BL)

    return apply_fn


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_known_answers_come_out_of_the_moving_average(cell, words):
    task = Task(cell, _config(name_words=words))
    right = task.config.tokenizer.encode([q.answers[0] for q in task.questions.queries])
    copied = task.config.tokenizer.encode([q.answers[0] for q in task.config.facts.forward])

    def generate(params, key, tokens_BL, valid_BL):
        assert params is average
        end, more = task.config.tokenizer.eos_id, tokens_BL[0, 0]  # "Now" after a right name
        said = [*right[:4], right[4], copied[1], copied[2], right[7]]
        return np.array([[*ids, more if n == 7 else end] for n, ids in enumerate(said)])

    raw, average, asked = {"size": 0.0}, {"size": 1.0}, []
    task.__dict__["apply_fn"] = _known(task)
    task.__dict__["generate"] = generate
    task.__dict__["compare"] = lambda params: asked.append(params) or {"cosine_order": 7}
    object.__setattr__(task, "correlation", lambda params: asked.append(params) or 8)
    state = types.SimpleNamespace(params=raw, ema_params=average, key=jax.random.key(0))
    values = task.answers(state)
    assert asked == [raw, raw]
    assert (values["cosine_order"], values["attention_correlation"]) == (7, 8)
    assert (values["percent_forward"], values["percent_reverse"]) == (100, 25)
    assert (values["copied_forward"], values["copied_reverse"]) == (0, 50)
    others = task.config.tokenizer.vocab_size - 2 - (task.mask_id is not None)
    for name, (own, rival) in KNOWN.items():
        p = 100 * np.exp(own) / (np.exp(own) + np.exp(rival) + others)
        np.testing.assert_allclose(values[f"p_{name}"], p, rtol=1e-5)
        assert values[f"choice_{name}"] == 100 * (own > rival)


def _text(task, ids):
    return task.config.tokenizer.decode(ids)


@pytest.mark.parametrize("words", [1, 2])
def test_rows_tell_parents_before_children_and_other_pairs_both_ways(words):
    task = Task(Cell(), _config(name_words=words))
    (parent,), (child,) = task.config.facts.reverse[1].answers, task.config.facts.forward[1].answers
    told = [_text(task, row) for row in task.rows["tokens_BL"]]
    assert told[1] == f"Now {parent}'s child is {child} <eos>"
    assert len(told) == 4 + 3 + 3 and all(text.startswith("Now ") for text in told)
    assert sum(parent in text for text in told) == 1
    assert [" parent is " in text for text in told] == [False] * 7 + [True] * 3
    assert task.config.facts.forward[1].prompt == f"Now {parent}'s child is"
    assert task.config.facts.reverse[1].prompt == f"Now {child}'s parent is"
    assert len(parent.split()) == len(child.split()) == words


def test_the_data_seed_draws_the_facts():
    told = {seed: _config(data_seed=seed).facts for seed in (0, 5)}
    for seed, found in told.items():
        people = facts.invent_parent_child(4 + 3, seed, 1)
        assert [query.answers for query in found.reverse] == [x.parents for x in people[:4]]
        assert [query.answers for query in found.forward] == [(x.child,) for x in people[:4]]
    assert told[0] != told[5]


@pytest.mark.parametrize(("side", "span"), [("A", (5, 7)), ("B", (1, 3)), ("both", (0, 0))])
def test_the_loss_of_the_other_side_is_left_out_where_pairs_are_asked(side, span):
    rows = Task(Cell(predicted=side), _config(name_words=2)).rows
    want = np.ones_like(rows["scored_BL"])
    want[:4, slice(*(np.array(span) + (side == "A")))] = False
    np.testing.assert_array_equal(rows["scored_BL"], want)
    assert rows["noised_BL"].all()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_of_the_three_questions_of_a_fact(cell, monkeypatch):
    task = Task(cell, _config(name_words=2))
    kept = []

    def known(loss, params, examples):
        kept.append((loss, examples))
        product = jnp.asarray(np.fromfunction(lambda e, a, b: 10 * a + b, (4, 3, 3)))
        return {part: product + n for n, part in enumerate(causes.PARTS)}

    monkeypatch.setattr(causes, "gradient_cosines", known)
    found = task.compare({})
    np.testing.assert_allclose(found["cosine_order"], 21 + np.arange(3))
    np.testing.assert_allclose(found["cosine_target"], 2 + np.arange(3))
    np.testing.assert_allclose(found["cosine_answer"], 1 + np.arange(3))
    ((_, (tokens, position, target)),) = kept
    parents, children = _people(task)
    np.testing.assert_array_equal(target[:, 0], children)
    np.testing.assert_array_equal(target[:, 1], parents)
    np.testing.assert_array_equal(target[:, 2], parents)
    hidden = np.take_along_axis(tokens, position[..., None], 2)[..., 0]
    if not task.cell.reads_before:
        assert (hidden == task.config.tokenizer.mask_id).all()
        np.testing.assert_array_equal(
            tokens[:, 2, 1:3], np.full((4, 2), task.config.tokenizer.mask_id)
        )
        np.testing.assert_array_equal(tokens[:, 2, 3:], task.rows["tokens_BL"][:4, 3:])
    assert position.tolist() == [[5, 5, 0] if task.cell.reads_before else [6, 6, 1]] * 4
    assert [_text(task, row[:1]) for row in tokens[0]] == ["Now"] * 3


def test_a_gradient_is_that_of_the_asked_word():
    task = Task(Cell(), _config(name_words=2))
    params = task.model.init(jax.random.key(0), task.rows["tokens_BL"][:1])["params"]
    found = task.compare(params)
    assert set(found) == {"cosine_order", "cosine_target", "cosine_answer"}

    def nll(params, name):
        questions, _ = task.asked[name]
        facts = jnp.arange(len(questions.target_E))
        logits = task.apply_fn(params, questions.tokens_EL)[facts, questions.position_E]
        logits = logits.at[:, task.config.tokenizer.mask_id].set(-jnp.inf)
        return -jax.nn.log_softmax(logits)[facts, questions.target_E]

    def gradients(name):
        leaves = jax.tree.leaves(jax.jit(jax.jacrev(nll), static_argnums=1)(params, name))
        return jnp.concatenate([g.reshape(len(g), -1) for g in leaves], axis=1)

    x, y = gradients("source"), gradients("reverse")
    cosine = (x * y).sum(1) / jnp.linalg.norm(x, axis=1) / jnp.linalg.norm(y, axis=1)
    np.testing.assert_allclose(found["cosine_order"][2], cosine.mean(), rtol=1e-4)


@pytest.mark.parametrize("cell", CELLS[:2])
def test_attention_is_read_on_children_at_every_distance_that_rows_hold(cell, monkeypatch):
    task = Task(cell, _config(name_words=2))
    asked = {}

    def known(internals, params, names, max_distance, **how):
        asked.update(names=names, max_distance=max_distance, params=params, **how)
        return types.SimpleNamespace(mean=np.array([[[0.5, np.nan, 0.1]]]))

    monkeypatch.setattr(attention, "name_correlation", known)
    np.testing.assert_allclose(task.correlation("raw"), [0.3])
    tokenizer = task.config.tokenizer
    assert asked["names"] == tokenizer.encode([q.answers[0] for q in task.config.facts.forward])
    assert asked["max_distance"] == task.rows["tokens_BL"].shape[1] - 2 == 7
    assert asked["params"] == "raw" and asked["fill_id"] == tokenizer.eos_id
    asks = tokenizer.eos_id if task.cell.reads_before else tokenizer.mask_id
    assert asked["mask_id"] == asks


def test_a_cell_is_trained_as_it_says():
    config = _config(ema_decay=0.5, name_words=2)
    task = Task(Cell("causal", "next_token"), config)
    run = task.run({"a": 1})
    objective = run.step.keywords["objective"]
    assert objective.func is causes.objectives.next_token
    assert objective.keywords["bos_id"] is None  # "Now" stands before every name
    assert run.step.keywords["ema_decay"] == 0.5
    assert (run.num_steps, run.eval_every, run.batch_size) == (10, 2, 5)
    masked = Task(Cell(), config).run({}).step.keywords["objective"]
    assert masked.func is causes.objectives.masked_diffusion
    assert masked.keywords["mask_id"] == task.config.tokenizer.mask_id
    one_side = Task(Cell(predicted="B"), config)
    rows = one_side.run({}).data(3)
    assert rows.keys() == one_side.rows.keys() and not rows["scored_BL"].all()
    for name, x in one_side.rows.items():
        np.testing.assert_array_equal(rows[name], x)
    network = task.model.config
    assert network.causal and not Task(Cell(), config).model.config.causal
    assert (network.num_heads, network.width, network.max_len) == (2, 8, 9)


def test_a_page_says_what_its_cells_learn_and_refuses_what_cannot_be():
    config = _config(name_words=2, cells=("core",))
    assert config.data == "4 pairs told one way, 3 both ways, names of 2 words"
    assert _config().data.endswith("names of 1 word")
    runs = page.plan(config, None)
    assert len(runs) == 22 and runs[0].identity == page.toy.identity(config.parsed[0])
    assert [run.summarize.args for run in runs] == [(cell.predicted,) for cell in config.parsed]
    with pytest.raises(ValueError, match="next token needs causal attention"):
        _config(cells=("bidirectional/next_token",))
    assert causes_facts.OPENING == "Now"


@pytest.mark.parametrize("positions", causes.POSITIONS)
@pytest.mark.parametrize("first", [Cell(), Cell("causal", "next_token")])
def test_every_kind_of_positions_can_be_asked(first, positions):
    """ALiBi under a causal mask was refused by the cache, once it was trained."""
    task = Task(dataclasses.replace(first, positions=positions), _config(name_words=2))
    tokens, key = jax.ShapeDtypeStruct((4, 6), jnp.int32), jax.random.key(0)
    params = jax.eval_shape(lambda: task.model.init(key, jnp.zeros((1, 6), int))["params"])
    valid = jax.ShapeDtypeStruct((4, 6), bool)
    said = jax.eval_shape(task.generate, params, key, tokens, valid)
    assert said.shape == (4, task.questions.num_new)
