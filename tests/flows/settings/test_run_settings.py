"""Settings of a run: stated once, and part of every flow's signature, form, help and docstring."""

import inspect
from pathlib import Path
from typing import Any, Unpack, get_args, get_type_hints

import pytest
from pydantic import Field

from flows import ConfigurationError, Distiset, Pipeline
from flows.cli.arguments import build_parser
from flows.execution.run import Run
from flows.pipeline import flow
from flows.pipeline.signature import expand_settings
from flows.settings import RunSettings, RunSettingsArgs
from tasks import LoadDataFromDicts
from tests.support.shipped_flows import SHIPPED_FLOWS


def rows() -> Pipeline:
    with Pipeline(name="rows") as pipeline:
        LoadDataFromDicts(data=[{"text": "a"}, {"text": "b"}])
    return pipeline


def echo(data: str, number: int = 1, parameters: Any = None, **settings: Unpack[RunSettingsArgs]) -> Any:
    """Return what comes.

    Args:
        data: The rows,
            in two lines.
        number: A number.
        limit: Rows of this flow.
        parameters: The last one.

    Raises:
        ValueError: Never.
    """
    return {"data": data, "number": number, "parameters": parameters} | settings


def test_the_model_and_the_types_of_its_arguments_agree():
    typed = get_type_hints(RunSettingsArgs)
    assert list(typed) == list(RunSettings.model_fields)
    for name, field in RunSettings.model_fields.items():
        kinds = set(get_args(typed[name])) - {str} if name == "output" else typed[name]
        assert kinds == (set(get_args(field.annotation)) if name == "output" else field.annotation), name
        assert field.description and field.description.endswith("."), name
        assert not field.is_required(), name


@pytest.mark.parametrize("each", SHIPPED_FLOWS, ids=lambda each: each.fn.__name__)
def test_every_flow_has_them_before_its_parameters(each):
    assert list(each.parameters.properties)[-len(RunSettings.model_fields) - 1 :] == [
        *RunSettings.model_fields,
        "parameters",
    ]
    assert each.parameters.properties["output"]["default"] == f"outputs/{each.fn.__name__}"
    for name, field in RunSettings.model_fields.items():
        assert each.parameters.properties[name]["description"] == field.description
        assert name == "output" or each.parameters.properties[name]["default"] == field.default


class TestSignature:
    def test_settings_stand_in_the_place_of_their_dictionary(self):
        call = expand_settings(echo, Path("made"))
        names = list(inspect.signature(call).parameters)
        assert names == ["data", "number", *RunSettings.model_fields, "parameters"]
        assert list(call.__annotations__) == [*names, "return"]

    def test_calls_by_position_and_by_name(self):
        call = expand_settings(echo, Path("made"))
        defaults = RunSettings().model_dump() | {"output": Path("made")}
        assert call("a") == defaults | {"data": "a", "number": 1, "parameters": None}
        assert call("a", 2, Path("b"), 5)["limit"] == call("a", limit=5)["limit"] == 5
        with pytest.raises(TypeError, match="limt"):
            call("a", limt=5)

    def test_a_flow_s_own_sentence_is_kept(self):
        doc = expand_settings(echo, None).__doc__ or ""
        assert "\n    data: The rows,\n        in two lines.\n    number: A number.\n    output: Folder" in doc
        assert "\n    limit: Rows of this flow.\n    use_cache: Take" in doc
        assert doc.endswith("\n    parameters: The last one.\n\nRaises:\n    ValueError: Never.")

    def test_a_docstring_without_arguments_gets_some(self):
        def bare(**settings: Unpack[RunSettingsArgs]) -> None:
            """Do nothing."""

        def silent(**settings: "Unpack[RunSettingsArgs]") -> None: ...

        assert (expand_settings(bare, None).__doc__ or "").startswith("Do nothing.\n\nArgs:\n    output: Folder")
        assert list(inspect.signature(expand_settings(silent, None)).parameters) == list(RunSettings.model_fields)

    def test_other_functions_are_left_as_they_are(self):
        def other(limit: int, **settings: Any) -> None: ...

        assert expand_settings(other, None) is other


@pytest.mark.usefixtures("prefect_server")
class TestRun:
    def test_a_misspelt_one_is_refused_by_name(self):
        misspelt: dict[str, Any] = {"limt": 1}
        with pytest.raises(ConfigurationError, match="no `limt`: did you mean `limit`"):
            rows().run(**misspelt)
        with pytest.raises(ConfigurationError, match="`output_format`: .*'parquet' or 'jsonl'"):
            rows().run(output_format="csv")

    def test_strings_are_coerced(self):
        given: dict[str, Any] = {"limit": "1", "output": ""}
        assert rows().run(**given).summary.rows == 1

    def test_a_new_one_is_stated_once(self, tmp_path, monkeypatch):
        """A field of the model is in forms, help, docstrings and signatures, and reaches the run."""

        class MoreSettings(RunSettings):
            shards: int = Field(1, description="Files of each dataset.")

        for module in ("signature", "pipeline"):
            monkeypatch.setattr(f"flows.pipeline.{module}.RunSettings", MoreSettings)
        runs: list[Any] = []

        class RecordedRun(Run):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                runs.append(self.settings)

        monkeypatch.setattr("flows.pipeline.pipeline.Run", RecordedRun)

        @flow
        def mine(**settings: Unpack[RunSettingsArgs]) -> Distiset:
            """Make rows."""
            return rows().run(**settings)

        assert mine.parameters.properties["shards"]["description"] == "Files of each dataset."
        assert "shards" in rows().flow.parameters.properties
        assert "--shards SHARDS" in build_parser(mine).format_help()
        more: dict[str, Any] = {"shards": "3", "output": None}
        rows().run(**more)
        mine(**more | {"output": tmp_path / "made"})
        assert [settings.shards for settings in runs] == [3, 3]
