"""Steps that part and meet: branches, joins, routes, several sources; order and identity kept."""

import random
from collections import Counter

import pytest

from flows import Pipeline
from flows.errors import Refused
from tasks import (
    CombineOutputs,
    ExpandColumns,
    Filter,
    GlobalStep,
    GroupColumns,
    LoadDataFromDicts,
    Step,
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
    with pytest.raises(Refused, match="`(a >> b >> a|b >> a >> b)` goes in a circle"):
        pipeline.run()


def test_a_column_that_only_one_branch_makes_is_no_column_of_the_data():
    with Pipeline(name="columns") as pipeline:
        data = numbers(3)
        data >> [Say(name="a", says="a"), Filter(name="f", column="n")] >> GroupColumns(columns=["sad"])
    with pytest.raises(Refused, match="no (column )?`sad`"):
        pipeline.run()
