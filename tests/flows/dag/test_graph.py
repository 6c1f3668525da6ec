"""Steps that part and meet: branches, joins, routes, several sources; order and identity kept."""

import random
from collections import Counter

import numpy as np
import pytest

from flows import Pipeline
from flows.errors import ConfigurationError, RunFailed
from llms import OpenAILLM
from tasks import (
    CombineOutputs,
    ExpandColumns,
    Filter,
    GlobalStep,
    GroupColumns,
    KeepColumns,
    LoadDataFromDicts,
    Step,
    TextGeneration,
    route,
    sample_n_steps,
    step,
)
from tasks.typing import Row

pytestmark = pytest.mark.usefixtures("prefect_server")


class Say(Step):
    """Says something of each number; not of those it cannot bear."""

    says: str
    never: set[int] = set()

    @property
    def outputs(self):
        return ["said"]

    def process(self, inputs):
        if bad := [row["n"] for row in inputs if row["n"] in self.never]:
            raise ValueError(f"not {bad[0]}")
        yield [Row(row | {"said": f"{self.says} {row['n']}"}, row.origin) for row in inputs]


def numbers(count: int, **fields) -> LoadDataFromDicts:
    return LoadDataFromDicts(data=[{"n": each} for each in range(count)], **fields)


def rows(dataset, leaf="default"):
    return dataset[leaf]["train"].to_list()


def test_branches_that_meet_again():
    with Pipeline(name="diamond") as pipeline:
        numbers(100) >> [Say(name="a", says="a"), Say(name="b", says="b")] >> GroupColumns(columns=["said"])
    dataset = pipeline.run()
    assert rows(dataset) == [{"n": n, "grouped_said": [f"a {n}", f"b {n}"]} for n in range(100)]


def test_one_branch_that_always_fails():
    with Pipeline(name="half") as pipeline:
        bad = Say(name="bad", says="never", never=set(range(20)))
        numbers(20) >> [Say(name="good", says="good"), bad] >> GroupColumns(columns=["said"], output_columns=["all"])
    dataset = pipeline.run(max_error_rate=1)
    assert rows(dataset) == [{"n": n, "all": [f"good {n}"]} for n in range(20)]
    errors = dataset.errors
    assert len(errors) == 20 and set(errors["step"]) == {"bad"}


def test_what_branches_make_of_one_row_stays_together_though_one_makes_several_and_one_loses_some():
    with Pipeline(name="uneven") as pipeline:
        data = LoadDataFromDicts(data=[{"n": n, "parts": list(range(n % 4))} for n in range(40)])
        expand = ExpandColumns(columns={"parts": "part"})
        odd = Filter(where=lambda row: row["n"] % 2)
        data >> expand >> (left := Say(name="left", says="part"))
        data >> odd >> (right := Say(name="right", says="odd"))
        [left, right] >> GroupColumns(columns=["said"], output_columns=["said"])
    found = {row["n"]: row["said"] for row in rows(pipeline.run())}
    expected = {n: [f"part {n}"] * (n % 4) + [f"odd {n}"] * (n % 2) for n in range(40)}
    assert found == {n: said for n, said in expected.items() if said}
    assert list(found) == sorted(found)


def test_columns_of_all_branches_side_by_side():
    with Pipeline(name="wide") as pipeline:
        a = Say(name="a", says="a", output_mappings={"said": "one"})
        b = Say(name="b", says="b", output_mappings={"said": "two"})
        numbers(30) >> [a, b] >> CombineOutputs()
    assert rows(pipeline.run()) == [{"n": n, "one": f"a {n}", "two": f"b {n}"} for n in range(30)]


def test_branches_that_fill_the_same_column_are_told_how_not_to():
    with Pipeline(name="clash") as pipeline:
        numbers(3) >> [Say(name="a", says="a"), Say(name="b", says="b")] >> CombineOutputs()
    with pytest.raises(Exception, match="two branches fill `said`.*`output_mappings="):
        pipeline.run()


def test_rows_of_several_branches_go_on_one_after_the_other():
    with Pipeline(name="union") as pipeline:
        numbers(50) >> [Say(name="a", says="a"), Say(name="b", says="b")] >> Say(name="c", says="c")
    assert [row["n"] for row in rows(pipeline.run())] == [n for n in range(50) for _ in range(2)]


def test_several_sources():
    with Pipeline(name="sources") as pipeline:
        [numbers(30, name="x"), numbers(20, name="y")] >> Say(name="c", says="c")
    assert [row["n"] for row in rows(pipeline.run())] == [*range(30), *range(20)]


def test_the_nth_rows_of_several_sources_are_joined():
    with Pipeline(name="zip") as pipeline:
        words = LoadDataFromDicts(name="words", data=[{"word": f"w{each}"} for each in range(70)])
        [numbers(70), words] >> CombineOutputs()
    assert rows(pipeline.run()) == [{"n": n, "word": f"w{n}"} for n in range(70)]


class Shuffled(GlobalStep):
    """All rows in another order, without every tenth."""

    def process(self, inputs):
        kept = [row for row in inputs if row["n"] % 10]
        random.Random(3).shuffle(kept)
        yield kept


def test_a_join_after_a_step_that_waits_for_all():
    with Pipeline(name="late") as pipeline:
        data, a, b = numbers(60), Say(name="a", says="a"), Say(name="b", says="b")
        data >> Shuffled() >> a
        data >> b
        [a, b] >> GroupColumns(columns=["said"])
    found = rows(pipeline.run())
    assert [row["grouped_said"] for row in found] == [([f"a {n}"] if n % 10 else []) + [f"b {n}"] for n in range(60)]


def test_rows_go_where_they_are_sent():
    with Pipeline(name="routes") as pipeline:
        low, high = Say(name="low", says="low"), Say(name="high", says="high")
        (
            numbers(100)
            >> route(lambda row: "low" if row["n"] < 50 else ["low", "high"] if row["n"] < 60 else None)
            >> [
                low,
                high,
            ]
            >> GroupColumns(columns=["said"], output_columns=["said"])
        )
    found = {row["n"]: row["said"] for row in rows(pipeline.run())}
    assert found == {n: [f"low {n}"] + ([f"high {n}"] if n >= 50 else []) for n in range(60)}


def test_a_row_that_cannot_be_sent_anywhere_fails_once():
    with Pipeline(name="lost") as pipeline:
        (
            numbers(100)
            >> route(lambda row: "nowhere" if row["n"] == 7 else "a")
            >> [
                Say(name="a", says="a"),
                Say(name="b", says="b"),
            ]
        )
    dataset = pipeline.run()
    assert len(rows(dataset, "a")) == 99 and len(dataset.errors) == 1
    assert "`route` named `nowhere`: there are `a`, `b`" in dataset.errors["message"][0]


@pytest.mark.slow
def test_samples_are_the_same_every_time():
    def run(seed):
        with Pipeline(name="sample") as pipeline:
            steps = [Say(name=name, says=name) for name in "abc"]
            numbers(300) >> sample_n_steps(2, seed=seed) >> steps >> GroupColumns(columns=["said"])
        return [row["grouped_said"] for row in rows(pipeline.run())]

    first = run(1)
    assert first == run(1) != run(2)
    assert all(len(said) == 2 for said in first)
    drawn = Counter(each[0] for said in first for each in said)
    assert all(150 < drawn[name] < 250 for name in "abc")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(7, 50, 64), (1000, 3, 1), (None, 7, None)])
def test_batches_of_whatever_size(sizes):
    with Pipeline(name="sizes") as pipeline:
        first, *others = sizes
        chain = [Say(name=f"s{at}", says=f"{at}", input_batch_size=size) for at, size in enumerate(others)]
        numbers(1003, batch_size=first) >> chain[0] >> chain[1]
    assert [row["n"] for row in rows(pipeline.run())] == list(range(1003))


def test_a_step_from_a_function_joins():
    @step(inputs=["n"], outputs=["half"])
    def Half(rows):
        for row in rows:
            row["half"] = row["n"] / 2
        yield rows

    with Pipeline(name="function") as pipeline:
        numbers(20) >> [Half(), Say(name="a", says="a")] >> CombineOutputs()
    assert rows(pipeline.run())[3] == {"n": 3, "half": 1.5, "said": "a 3"}


class Anonymous(Step):
    """Two rows of each, without a word on what they were made of."""

    @property
    def outputs(self):
        return ["said"]

    def process(self, inputs):
        yield [{"n": row["n"], "said": "?"} for row in inputs for _ in range(2)]


def test_rows_of_unknown_making_are_not_joined():
    with Pipeline(name="anonymous") as pipeline:
        numbers(5) >> [Anonymous(), Say(name="a", says="a")] >> GroupColumns(columns=["said"])
    with pytest.raises(ValueError, match="must pass `row.origin` on"):
        pipeline.run()


def test_circles_are_named():
    with Pipeline(name="circle") as pipeline:
        a, b = Say(name="a", says="a"), Say(name="b", says="b")
        numbers(1) >> a >> b >> a
    with pytest.raises(ConfigurationError, match="`(a >> b >> a|b >> a >> b)` goes in a circle"):
        pipeline.run()


def test_a_column_that_only_one_branch_makes_is_no_column_of_the_data():
    with Pipeline(name="columns") as pipeline:
        data = numbers(3)
        data >> [Say(name="a", says="a"), Filter(name="f", column="n")] >> GroupColumns(columns=["sad"])
    with pytest.raises(ConfigurationError, match="no (column )?`sad`"):
        pipeline.run()


class Copies(Step):
    """Two rows of each, which do not say what they were made of."""

    def process(self, inputs):
        yield [{"n": row["n"], "copy": each} for row in inputs for each in "xy"]


@pytest.mark.slow
def test_rows_that_do_not_say_what_they_were_made_of_are_told_apart():
    with Pipeline(name="fresh") as pipeline:
        (
            numbers(50, batch_size=7)
            >> Copies()
            >> [Say(name="a", says="a"), Say(name="b", says="b")]
            >> (GroupColumns(columns=["said"]))
        )
    due = [(n, copy, [f"a {n}", f"b {n}"]) for n in range(50) for copy in "xy"]
    assert [(row["n"], row["copy"], row["grouped_said"]) for row in rows(pipeline.run())] == due


class Plain(GlobalStep):
    """As many rows as there are, of others."""

    def process(self, inputs):
        yield [{"n": row["n"]} for row in sorted(inputs, key=lambda row: -row["n"])]


@pytest.mark.slow
def test_what_a_row_was_made_of_is_never_guessed_where_all_are_at_hand():
    with Pipeline(name="guess") as pipeline:
        data = numbers(30)
        data >> Plain() >> (a := Say(name="a", says="a"))
        data >> (b := Say(name="b", says="b"))
        [a, b] >> GroupColumns(columns=["said"])
    with pytest.raises(ValueError, match="must pass `row.origin` on"):
        pipeline.run()
    with Pipeline(name="no-guess") as pipeline:
        numbers(30) >> Plain() >> [Say(name="a", says="a"), Say(name="b", says="b")] >> GroupColumns(columns=["said"])
    assert rows(pipeline.run()) == [{"n": n, "grouped_said": [f"a {n}", f"b {n}"]} for n in range(29, -1, -1)]


class Turned(GlobalStep):
    """All rows, the last first."""

    def process(self, inputs):
        yield [row | {"turned": True} for row in reversed(inputs)]


@pytest.mark.parametrize("joined", [True, False])
def test_the_order_that_a_step_gave_the_rows_is_kept_where_branches_meet(joined):
    with Pipeline(name="order") as pipeline:
        branches = numbers(40) >> Turned() >> [Say(name="a", says="a"), Say(name="b", says="b")]
        branches >> (GroupColumns(columns=["said"]) if joined else Say(name="c", says="c"))
    due = range(39, -1, -1)
    assert [row["n"] for row in rows(pipeline.run())] == [n for n in due for _ in range(1 if joined else 2)]


def test_a_route_that_does_not_know_its_own_mind_ends_the_run():
    calls = iter(range(10_000))
    for by in (lambda row: random.choice("ab"), lambda row: "ab"[next(calls) % 2]):
        with Pipeline(name="fickle") as pipeline:
            numbers(100, name="data") >> route(by) >> [Say(name="a", says="a"), Say(name="b", says="b")]
        with pytest.raises(
            RunFailed, match=r"the route after `data` sends the same row \(data\[\d+\]\) to `.`.*`sample_n"
        ):
            pipeline.run()


def test_a_route_may_stand_between_one_step_and_one_or_several_and_several():
    with Pipeline(name="one") as pipeline:
        even = numbers(10) >> route(lambda row: None if row["n"] % 2 else "even") >> Say(name="even", says="even")
        assert even.name == "even"
    assert [row["n"] for row in rows(pipeline.run())] == [0, 2, 4, 6, 8]
    with Pipeline(name="several") as pipeline:
        both = [Say(name="a", says="a"), Say(name="b", says="b", output_mappings={"said": "other"})]
        (
            numbers(10)
            >> both
            >> route(lambda row: "low" if row["n"] < 5 else "high")
            >> [Say(name="low", says="low"), Say(name="high", says="high")]
        )
    made = pipeline.run()
    assert [row["n"] for row in rows(made, "low")] == [n for n in range(5) for _ in "ab"]
    assert [row["n"] for row in rows(made, "high")] == [n for n in range(5, 10) for _ in "ab"]


def test_steps_may_be_connected_by_name():
    with Pipeline(name="connect") as pipeline:
        data, a, b, joined = (
            numbers(3),
            Say(name="a", says="a"),
            Say(name="b", says="b"),
            GroupColumns(columns=["said"]),
        )
        data.connect(a, b)
        a.connect(joined)
        b.connect(joined)
    assert rows(pipeline.run()) == [{"n": n, "grouped_said": [f"a {n}", f"b {n}"]} for n in range(3)]
    with pytest.raises(ValueError, match="`a`: steps are connected inside `with Pipeline"):
        a.connect(b)


def test_more_samples_than_steps_are_refused_before_anything_is_asked():
    with Pipeline(name="three") as pipeline:
        numbers(3, name="data") >> sample_n_steps(3) >> [Say(name="a", says="a"), Say(name="b", says="b")]
    with pytest.raises(
        ConfigurationError, match=r"`data >> sample_n_steps\(3\)` stands before 2 steps: .* smaller `n`"
    ):
        pipeline.run()


def answering(name, wire, **fields):
    llm = OpenAILLM(model=name, base_url=wire.url, api_key="k")
    return TextGeneration(name=name, llm=llm, template="{{ n }}", **fields)


def test_models_that_fill_the_same_column_are_refused_before_anything_is_asked(wire):
    with Pipeline(name="clash") as pipeline:
        numbers(3) >> [answering("a", wire), answering("b", wire)] >> CombineOutputs()
    clash = '`a` and `b` both fill `generation`, and `combine_outputs` .*`output_mappings={"generation": "other_gene'
    with pytest.raises(ConfigurationError, match=clash):
        pipeline.run()
    assert not wire.requests


def test_models_of_which_each_row_meets_one_fill_the_same_column(wire):
    def connect(data):
        data >> route(lambda row: "a" if row["n"] else "b") >> [answering("a", wire), answering("b", wire)]

    def filter(data):
        data >> Filter(name="some", where=lambda row: row["n"]) >> answering("a", wire)
        data >> Filter(name="none", where=lambda row: not row["n"]) >> answering("b", wire)

    for part in (connect, filter):
        with Pipeline(name="switch") as pipeline:
            part(numbers(3))
            [step for step in pipeline.steps if step.name in ("a", "b")] >> CombineOutputs()
        assert [(row["n"], row["model_name"]) for row in rows(pipeline.run())] == [(0, "b"), (1, "a"), (2, "a")]


def test_a_column_of_another_name_or_dropped_again_is_no_clash(wire):
    for other in ({"output_mappings": {"generation": "other"}}, {}):
        with Pipeline(name="named") as pipeline:
            data, b = numbers(3), answering("b", wire, **other)
            data >> answering("a", wire) >> (combined := CombineOutputs())
            data >> b
            (b if other else b >> KeepColumns(columns=["n"])) >> combined
        assert pipeline.run().summary.rows == 3


def test_what_is_equal_is_no_clash():
    nan = {"x": float("nan"), "list": [float("nan"), {"y": None}], "array": np.array([1.0, np.nan])}
    other = {"x": float("nan"), "list": [float("nan"), {"y": None}], "array": np.array([1.0, np.nan])}
    [[row]] = CombineOutputs().process([nan], [other | {"more": 1}])
    assert row["more"] == 1 and row.keys() == {*nan, "more"}
    for name, value in {"x": 1.0, "list": [float("nan")], "array": np.array([1.0, 2.0])}.items():
        with pytest.raises(ValueError, match=f"two branches fill `{name}`"):
            next(CombineOutputs().process([nan], [{name: value}]))
