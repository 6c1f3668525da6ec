"""Steps that choose, merge, expand and drop: columns and rows, where each comes from, and what is refused."""

import pytest
from pydantic import ValidationError

from flows import ConfigurationError, Pipeline
from tasks import CombineOutputs, LoadDataFromDicts
from tasks.columns.expand_columns import ExpandColumns
from tasks.columns.keep_columns import KeepColumns
from tasks.columns.merge_columns import MergeColumns
from tasks.filtering.filter import Filter
from tasks.typing import Row


def processed(step, *rows):
    """What a step makes of rows that come from `here:0`, `here:1` …, and where each came from."""
    made = [row for chunk in step.process([Row(row, f"here:{at}") for at, row in enumerate(rows)]) for row in chunk]
    return made, [row.origin for row in made]


class TestKeepColumns:
    def test_others_go_and_the_order_is_the_one_named(self):
        made, origins = processed(KeepColumns(columns=["b", "a"]), {"a": 1, "b": 2, "x_metadata": {}})
        assert list(made[0].items()) == [("b", 2), ("a", 1)] and origins == ["here:0"]

    def test_a_row_without_one_fails_alone(self):
        outcome = KeepColumns(columns=["a"]).run([{"a": 1}, {"b": 2}])
        assert outcome.rows == [{"a": 1}] and "no column `a`: the row has `b`" in outcome.failures[0].message

    def test_they_may_be_called_otherwise(self):
        step = KeepColumns(columns=["a"], input_mappings={"a": "x"}, output_mappings={"a": "z"})
        assert step.run([{"x": 1, "y": 2}]).rows == [{"z": 1}]

    @pytest.mark.parametrize(
        ("columns", "message"), [([], r"name a column: `columns=\["), (["a", "b", "a"], "`a` is named twice")]
    )
    def test_none_and_twice_the_same_are_refused(self, columns, message):
        with pytest.raises(ValidationError, match=message):
            KeepColumns(columns=columns)


class TestMergeColumns:
    def test_lists_give_their_elements_and_the_columns_go(self):
        step = MergeColumns(columns=["one", "many"], output_column="all")
        made, origins = processed(step, {"one": "a", "many": ["b", "c"], "id": 7})
        assert made == [{"id": 7, "all": ["a", "b", "c"]}] and origins == ["here:0"]

    def test_the_list_may_take_the_name_of_one_of_them(self):
        assert MergeColumns(columns=["a", "b"], output_column="a").run([{"a": 1, "b": [2]}]).rows == [{"a": [1, 2]}]

    def test_nothing_is_an_element_too(self):
        assert MergeColumns(columns=["a", "b"]).run([{"a": None, "b": "x"}]).rows == [{"merged_column": [None, "x"]}]


class TestExpandColumns:
    def test_a_row_per_element_each_from_where_its_list_was(self):
        step = ExpandColumns(columns=["a"])
        made, origins = processed(step, {"a": [1, 2], "id": "x"}, {"a": [], "id": "y"}, {"a": [3], "id": "z"})
        assert made == [{"id": "x", "a": 1}, {"id": "x", "a": 2}, {"id": "z", "a": 3}]
        assert origins == ["here:0", "here:0", "here:2"]

    def test_several_columns_go_together_under_new_names(self):
        step = ExpandColumns(columns={"texts": "text", "ratings": "rating"})
        assert step.outputs == ["text", "rating"]
        assert step.run([{"texts": ["a", "b"], "ratings": [1, None]}]).rows == [
            {"text": "a", "rating": 1},
            {"text": "b", "rating": None},
        ]

    def test_unequal_lists_cost_their_row_and_say_which(self):
        outcome = ExpandColumns(columns=["a", "b"]).run([{"a": [1], "b": [2]}, Row({"a": [1, 2], "b": [3]}, "x:9")])
        assert outcome.rows == [{"a": 1, "b": 2}]
        [failure] = outcome.failures
        assert "equally many elements: `a` has 2, `b` has 1" in failure.message and failure.origin == "x:9"

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (None, "`a` is `None`, not a list"),
            (3, "`a` is a `int`, not a list"),
            ("[1]", "if it is one in JSON, say `encoded=True`"),
        ],
    )
    def test_what_is_no_list_fails(self, value, message):
        [failure] = ExpandColumns(columns=["a"]).run([{"a": value}]).failures
        assert message in failure.message

    def test_lists_may_be_json(self):
        assert ExpandColumns(columns=["a"], encoded=True).run([{"a": "[1, 2]"}]).rows == [{"a": 1}, {"a": 2}]
        step = ExpandColumns(columns=["a", "b"], encoded=["b"])
        assert step.run([{"a": [1], "b": '["x"]'}]).rows == [{"a": 1, "b": "x"}]
        failures = ExpandColumns(columns=["a"], encoded=True).run([{"a": "[1"}, {"a": '{"b": 1}'}, {"a": [1]}]).failures
        assert "`a` is no list in JSON" in failures[0].message
        assert "`a` is a `dict`, not a list" in failures[1].message
        assert "`a` is no list in JSON" in failures[2].message

    def test_tokens_are_counted_once(self):
        metadata = {"input_tokens": 3, "output_tokens": 5, "raw_output": "1, 2"}
        rows = ExpandColumns(columns=["a"]).run([{"a": [1, 2], "x_metadata": metadata}]).rows
        assert [row["x_metadata"]["output_tokens"] for row in rows] == [5, None]
        assert rows[1]["x_metadata"]["raw_output"] == "1, 2"
        rows = ExpandColumns(columns=["a"], split_statistics=False).run([{"a": [1, 2], "x_metadata": metadata}]).rows
        assert [row["x_metadata"] for row in rows] == [metadata, metadata]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"columns": []}, "name a column"),
            ({"columns": ["a", "a"]}, "`a` is named twice"),
            ({"columns": {"a": "c", "b": "c"}}, "`c` is named twice"),
            ({"columns": ["texts"], "encoded": ["text"]}, "did you mean `texts`"),
        ],
    )
    def test_nonsense_is_refused_before_anything_runs(self, fields, message):
        with pytest.raises(ValidationError, match=message):
            ExpandColumns(**fields)


class TestFilter:
    def test_a_function_decides(self):
        made, origins = processed(Filter(where=lambda row: row["n"] > 1), {"n": 1}, {"n": 2}, {"n": 3})
        assert made == [{"n": 2}, {"n": 3}] and origins == ["here:1", "here:2"]

    def test_a_column_decides(self):
        outcome = Filter(column="ok").run([{"ok": True}, {"ok": None}, {"ok": 0}, {"ok": "yes"}])
        assert outcome.rows == [{"ok": True}, {"ok": "yes"}] and not outcome.failures

    def test_what_it_cannot_judge_is_a_failure(self):
        outcome = Filter(where=lambda row: row["n"] > 1).run([{"n": None}, {"n": 2}])
        assert outcome.rows == [{"n": 2}] and outcome.failures[0].error == "TypeError"
        assert "no column `ok`" in Filter(column="ok").run([{"n": 1}]).failures[0].message

    def test_a_forgotten_return_drops_nothing_silently(self):
        [failure] = Filter(where=lambda row: None).run([{"n": 1}]).failures
        assert "returns `True` for a row to keep" in failure.message

    def test_a_function_is_in_no_form(self):
        for known in (Filter.model_json_schema()["properties"], Filter(where=bool).model_dump()):
            assert "column" in known and "where" not in known

    @pytest.mark.parametrize("fields", [{}, {"where": bool, "column": "ok"}])
    def test_one_of_the_two_is_given(self, fields):
        with pytest.raises(ValidationError, match="one of the two"):
            Filter(**fields)


class TestChecked:
    """What a step reads is there, or nothing runs."""

    def checked(self, connect, *data):
        with Pipeline() as pipeline:
            sources = [LoadDataFromDicts(name=f"data_{at}", data=rows) for at, rows in enumerate(data)]
            connect(*sources)
        graph = pipeline._build_graph({})
        graph.check()
        return graph

    def refused(self, connect, *data):
        with pytest.raises(ConfigurationError) as error:
            self.checked(connect, *data)
        return str(error.value)

    def test_a_column_that_was_not_kept_is_no_longer_there(self):
        rows = [{"instruction": "a", "id": 1, "note": ""}]
        keep = {"columns": ["instruction", "id"]}
        said = self.refused(lambda data: data >> KeepColumns(**keep) >> Filter(column="note"), rows)
        assert said == (
            "`filter` reads `note`, which rows have no longer after `keep_columns`: there are `id`, `instruction`."
        )
        said = self.refused(lambda data: data >> KeepColumns(**keep) >> Filter(column="instructions"), rows)
        assert said.endswith("after `keep_columns`: did you mean `instruction`?")
        self.checked(lambda data: data >> KeepColumns(**keep) >> Filter(column="id"), rows)

    def test_nor_one_that_was_merged(self):
        rows = [{"a": 1, "b": 2, "c": 3}]
        merge = {"columns": ["a", "b"], "output_column": "both"}
        said = self.refused(lambda data: data >> MergeColumns(**merge) >> ExpandColumns(columns=["b"]), rows)
        assert said.startswith("`expand_columns` reads `b`, which rows have no longer after `merge_columns`: there are")
        self.checked(lambda data: data >> MergeColumns(**merge) >> ExpandColumns(columns=["both"]), rows)
        self.checked(
            lambda data: data >> MergeColumns(columns=["a", "b"], output_column="a") >> Filter(column="a"), rows
        )
        assert "has no `d`: it has" in self.refused(
            lambda data: data >> MergeColumns(**merge) >> Filter(column="d"), rows
        )

    def test_names_are_the_rows_own(self):
        rows = [{"x": 1, "y": 2}]
        renamed = {"columns": ["a"], "input_mappings": {"a": "x"}, "output_mappings": {"a": "z"}}
        self.checked(lambda data: data >> KeepColumns(**renamed) >> Filter(column="z"), rows)
        for gone in ("x", "y", "a"):
            said = self.refused(lambda data, gone=gone: data >> KeepColumns(**renamed) >> Filter(column=gone), rows)
            assert f"reads `{gone}`, which rows have no longer" in said
        merged = MergeColumns(columns=["a", "y"], input_mappings={"a": "x"})
        assert merged.run([{"x": 1, "y": 2, "w": 3}]).rows == [{"w": 3, "merged_column": [1, 2]}]

    def test_what_is_made_again_is_there(self):
        def connect(data):
            data >> KeepColumns(columns=["b"]) >> MergeColumns(columns=["b"], output_column="a") >> Filter(column="a")

        self.checked(connect, [{"a": 1, "b": 2}])

    def test_each_branch_is_looked_at(self):
        def connect(data):
            data >> [KeepColumns(columns=["a"]), Filter(column="a")] >> Filter(name="last", column="b")

        assert "`last` reads `b`, which rows have no longer after `keep_columns`" in self.refused(
            connect, [{"a": 1, "b": 2}]
        )

        def joined(data):
            data >> [KeepColumns(columns=["a"]), Filter(column="a")] >> CombineOutputs() >> Filter(name="f", column="b")

        self.checked(joined, [{"a": 1, "b": 2}])

    def test_of_joined_sources_either_may_bring_a_column(self):
        def connect(one, other):
            [one, other] >> CombineOutputs() >> Filter(name="first", column="a") >> Filter(name="second", column="b")

        self.checked(connect, [{"a": 1}], [{"b": 2}])
        assert "has no `b`" in self.refused(connect, [{"a": 1}], [{"c": 2}])


def test_they_work_in_a_pipeline(prefect_server):
    data = [{"a": at, "b": [at, None], "other": 0} for at in range(20)]
    with Pipeline(name="columns") as pipeline:
        source = LoadDataFromDicts(data=data, batch_size=7)
        merged = MergeColumns(columns=["a", "b"], output_column="all")
        expanded = ExpandColumns(columns={"all": "one"})
        source >> merged >> expanded >> Filter(where=lambda row: row["one"] is not None) >> KeepColumns(columns=["one"])
    result = pipeline.run()
    assert result["default"]["train"].column_names == ["one"]
    assert result["default"]["train"]["one"] == [at for at in range(20) for _ in range(2)]
    assert not len(result.errors)
