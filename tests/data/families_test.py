"""Family graphs: relations are functions and close, and what is withheld follows from the rest."""

import itertools

import numpy as np
import pytest

from dirasym.data import families
from dirasym.data.families import NUM_PERSONS, RELATIONS, derived, family

# By hand: three couples, each with a son and a daughter.
COUNTS = dict(husband=3, wife=3, father=6, mother=6, son=6, daughter=6, brother=3, sister=3)


def test_a_family_has_36_facts_and_each_relation_is_a_function():
    facts = family()
    assert {r: sum(fact[1] == r for fact in facts) for r in RELATIONS} == COUNTS
    assert len({(s, r) for s, r, _ in facts}) == len(facts) == 36
    assert {person for s, _, o in facts for person in (s, o)} == set(range(NUM_PERSONS))
    assert not any(s == o for s, _, o in facts)


def test_every_fact_has_one_inverse_and_inverting_twice_is_the_fact():
    facts, back = family(), families.inverses()
    for s, r, o in facts:
        ((_, inverse, _),) = [fact for fact in facts if (fact[0], fact[2]) == (o, s)]
        assert inverse in back[r] and r in back[inverse]
    assert back["husband"] == ("wife",) and back["father"] == ("daughter", "son")


def test_compositions_are_closed_and_as_by_hand():
    rules = families.compositions()
    assert set(rules.values()) <= set(RELATIONS)
    by_hand = {
        ("son", "father"): "husband", ("daughter", "father"): "husband",
        ("son", "mother"): "wife", ("daughter", "mother"): "wife",
        ("father", "wife"): "mother", ("mother", "husband"): "father",
        ("father", "son"): "brother", ("mother", "son"): "brother",
        ("father", "daughter"): "sister", ("mother", "daughter"): "sister",
        ("husband", "son"): "son", ("wife", "son"): "son", ("son", "sister"): "daughter",
        ("husband", "daughter"): "daughter", ("wife", "daughter"): "daughter",
        ("daughter", "brother"): "son", ("brother", "father"): "father",
        ("sister", "father"): "father", ("brother", "mother"): "mother",
        ("sister", "mother"): "mother",
    }  # fmt: skip
    assert rules == by_hand
    facts = family()
    for (s, first, m), (n, second, o) in itertools.product(facts, repeat=2):
        if m == n and s != o and (first, second) in rules:
            assert (s, rules[first, second], o) in facts


def test_what_is_derived_is_true_and_a_pair_alone_gives_its_inverse_alone():
    wives = {fact for fact in family() if fact[1] == "wife"}
    husbands = {fact for fact in family() if fact[1] == "husband"}
    assert derived(wives) == wives | husbands
    assert derived(family()) == family()  # closed
    told = {(8, "father", 4), (4, "wife", 6)}
    assert (8, "mother", 6) in derived(told) <= family()
    # Nobody knows whether 8 is a son or a daughter until something tells.
    assert not any(s == 4 and o == 8 for s, _, o in derived(told))
    assert (4, "son", 8) in derived(told | {(9, "brother", 8)})


@pytest.mark.parametrize("closure", range(7))
def test_withheld_facts_are_asked_alone_follow_and_are_counted_by_hand(closure):
    graph = families.families(20, closure, withheld_share=0.25, seed=1)
    assert graph.trained[:2] == ("husband", "wife") and len(graph.trained) == 2 + closure
    a_family = sum(COUNTS[r] for r in graph.trained)
    assert len(graph.train_EL) == 20 * a_family - 5 * 3
    assert len(graph.withheld_EL) == len(graph.given_EL) == 15 and len(graph.shown_EL) == 45
    told, withheld = (set(map(tuple, x.tolist())) for x in (graph.train_EL, graph.withheld_EL))
    assert not told & withheld and len(told) == len(graph.train_EL)
    assert set(map(tuple, graph.given_EL.tolist())) <= told
    np.testing.assert_array_equal(graph.given_EL[:, [0, 2]], graph.withheld_EL[:, [2, 0]])
    assert set(graph.withheld_EL[:, 1]) == {RELATIONS.index("husband")}
    assert set(graph.given_EL[:, 1]) == {RELATIONS.index("wife")}
    shown = set(map(tuple, graph.shown_EL.tolist()))
    assert len(shown) == 45 and shown <= told
    assert set(graph.shown_EL[:, 1]) == {RELATIONS.index("husband")}
    # By tokens: each withheld fact follows from what its family is told.
    for number in {int(graph.family_V[s]) for s, _, _ in withheld}:
        known = [(s, RELATIONS[r], o) for s, r, o in told if graph.family_V[s] == number]
        asked = {(s, RELATIONS[r], o) for s, r, o in withheld if graph.family_V[s] == number}
        assert len(asked) == 3 and asked <= derived(known)


def test_families_share_no_person_and_a_seed_is_a_graph():
    graph = families.families(6, 6, seed=3)
    family_V = graph.family_V
    assert (family_V[:8] == -1).all() and (np.bincount(family_V[8:]) == NUM_PERSONS).all()
    assert (family_V[graph.train_EL[:, 0]] == family_V[graph.train_EL[:, 2]]).all()
    again, other = families.families(6, 6, seed=3), families.families(6, 6, seed=4)
    np.testing.assert_array_equal(graph.train_EL, again.train_EL)
    assert (graph.train_EL != other.train_EL).any()


@pytest.mark.parametrize(("share", "asked"), [(0.3, 2), (0.4, 2), (0.5, 3)])
def test_as_many_families_are_asked_as_come_nearest_to_the_share(share, asked):
    graph = families.families(6, 6, withheld_share=share)
    assert len(set(graph.family_V[graph.withheld_EL[:, 0]])) == asked


def test_both_directions_may_be_withheld_where_the_rest_tells_them():
    graph = families.families(8, 4, withheld=("husband", "wife"))
    assert len(graph.given_EL) == 0 and len(graph.withheld_EL) == 2 * 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(closure=7), "closure=7: beside husband, wife there are 6"),
        (dict(closure=0, withheld=("husband", "wife")), "leaves nothing to ask"),
        (dict(withheld=("uncle",)), "withheld=uncle is not among"),
        (dict(withheld=()), "withheld= is not among"),
        (dict(withheld_share=0.005), "asks 0 of 60 families"),
        (dict(withheld_share=1.0), "asks 60 of 60 families"),
        (dict(withheld=RELATIONS, closure=0), "leaves nothing to ask"),
    ],
)
def test_what_leaves_nothing_to_ask_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        families.families(**changes)


def test_closure_adds_relations_by_twos_in_the_order_of_the_page():
    others = families.told_relations(["husband"], 6)[2:]
    assert others == ("son", "father", "daughter", "mother", "brother", "sister")
