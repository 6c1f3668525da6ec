"""What Prefect's UI and API make of a flow's parameters and a model's fields: forms, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import ValidationError, validate
from pydantic import Field

from deployments.__main__ import main
from deployments.reconcile.files import SHIPPED
from flows import ConfigurationError, Pipeline
from flows.settings.step_parameters import parameters_model, to_json, validate_parameters, with_parameters
from flows.text_generation import text_generation
from llms import LLM, AnyLLM, LlamaServerLLM, OpenAILLM
from llms.any_llm import model_classes, resolve_model, secret_fields
from tasks import LoadDataFromDicts, TextGeneration
from tests.support.files import replace_in_file
from tests.support.prefect_server import ask_server
from tests.support.shipped_flows import SHIPPED_FLOWS
from tests.support.waiting import wait_until

SHIPPED_MODELS = (cls for cls in model_classes().values() if cls.__module__.startswith("llms."))
MODELS = sorted(SHIPPED_MODELS, key=lambda cls: cls.__module__)
NAMED = [
    "openai-llm/forms",
    "OpenAILLM model=m timeout=30",
    {"$ref": {"block_document_slug": "openai-llm/forms"}},
    {"block_type_slug": "openai-llm", "model": "m", "timeout": "30"},
]
"""One model, however it is named."""

WRONG = [
    ({"limit": "many"}, "limit"),
    ({"limt": 5}, "limt"),
    ({"llm": 5}, "llm"),
    ({"llm": {"model": "m"}}, "llm"),
    ({"llm": {"block_type_slug": "openai-llm", "modle": "m"}}, "llm"),
    ({"llm": {"block_type_slug": "openai-llm", "model": "m", "api_key": "sk-1"}}, "llm"),
    ({"llm": "OpenAILLM model=m api_key=sk-1"}, "llm"),
    ({"llm": '{"block_type_slug": "openai-llm", "model": "m", "api_key": "sk-1"}'}, "llm"),
    ({"llm": """AzureOpenAILLM model=m 'azure_ad_token'="sk-1\""""}, "llm"),
    ({"parameters": {"text_generation": {"llm": {"api_key": "sk-1"}}}}, "parameters.text_generation.llm"),
    ({"parameters": {"text_generation": {"api_key": "sk-1"}}}, "parameters.text_generation"),
    ({"parameters": {"another": {"llm": {"token": "sk-1"}}}}, "parameters.another.llm"),
    ({"parameters": {"text_generation": {"input_batch_size": "all"}}}, "parameters.text_generation.input_batch_size"),
    (
        {"parameters": {"text_generation": {"llm": {"generation_kwargs": {"temperature": -1}}}}},
        "parameters.text_generation.llm.generation_kwargs.temperature",
    ),
]

each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
each_flow = pytest.mark.parametrize("flow", SHIPPED_FLOWS, ids=lambda flow: flow.fn.__name__)


@cache
def form(flow: "Flow[..., Any]") -> dict[str, Any]:
    return parameter_schema(flow).model_dump() | {"additionalProperties": False}


@each_flow
class TestEveryFlow:
    def test_offers_every_model_and_a_name(self, flow: "Flow[..., Any]") -> None:
        schema = form(flow)
        name, *tabs = schema["properties"]["llm"]["anyOf"]
        assert name["type"] == "string"
        assert tabs == [{"$ref": f"#/definitions/{cls.__name__}"} for cls in MODELS]
        for cls in MODELS:
            tab = schema["definitions"][cls.__name__]
            assert tab["title"] == cls.__name__, "Prefect looks for a reference to a block under the title"
            assert tab["block_type_slug"] == cls.get_block_type_slug()

    def test_takes_its_own_defaults(self, flow: "Flow[..., Any]") -> None:
        schema = form(flow)
        defaults = {name: field["default"] for name, field in schema["properties"].items()}
        given = {name: value for name, value in defaults.items() if value is not None}
        validate(given, schema, raise_on_error=True)
        flow.validate_parameters(given)

    def test_its_steps_are_groups_of_typed_fields(self, flow: "Flow[..., Any]") -> None:
        steps = form(flow)["properties"]["parameters"]["properties"]
        assert steps
        for group in steps.values():
            assert group["properties"]["input_batch_size"]["type"] == "integer"
            if "llm" in group["properties"]:
                options = group["properties"]["llm"]["properties"]["generation_kwargs"]["properties"]
                assert options["temperature"]["type"] == "number" and options["max_new_tokens"]["type"] == "integer"

    @pytest.mark.parametrize("named", NAMED, ids=str)
    def test_takes_a_model_however_it_is_named(self, flow: "Flow[..., Any]", named: Any) -> None:
        validate({"llm": named}, form(flow), raise_on_error=True)


@pytest.mark.parametrize(("given", "name"), WRONG, ids=str)
def test_what_is_wrong_is_refused_by_its_name(given: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=f"'{name}'"):
        validate(given, form(text_generation), raise_on_error=True)


def written(url: str | None = None) -> Pipeline:
    """A pipeline with a model that has a key."""
    llm = OpenAILLM(model="own", base_url=url, api_key="key-of-its-own", generation_kwargs={"stop": ["."]})
    with Pipeline(name="written") as pipeline:
        LoadDataFromDicts(data=[{"instruction": "Hi"}]) >> TextGeneration(llm=llm)
    return pipeline


class Panel(TextGeneration):
    """Has a judge."""

    judge: AnyLLM = Field(description="Rates the answers.")


class TestAPipeline:
    """A form of its steps' own fields, where another model may take the place of the one it was written with."""

    @staticmethod
    @cache
    def form() -> dict[str, Any]:
        return form(written().flow)

    def test_is_filled_in_with_what_its_steps_have_but_secrets(self) -> None:
        schema = self.form()
        assert "key-of-its-own" not in json.dumps(schema) and '"api_key":' not in json.dumps(schema)
        given = schema["properties"]["parameters"]["default"]
        assert given["text_generation"]["llm"]["generation_kwargs"]["stop"] == ["."]
        validate({"parameters": given}, schema, raise_on_error=True)
        step = {"llm": {"generation_kwargs": {"temperature": 0.3}, "timeout": 30}, "input_batch_size": 5}
        validate({"parameters": {"text_generation": step}}, schema, raise_on_error=True)

    def test_offers_its_own_model_first_then_a_name_and_every_model(self) -> None:
        schema = self.form()
        own, name, *tabs = schema["definitions"]["text_generation"]["properties"]["llm"]["anyOf"]
        assert own["properties"]["timeout"]["type"] == "number" and name["type"] == "string"
        assert tabs == [{"$ref": f"#/definitions/{cls.__name__}"} for cls in MODELS]
        assert all(schema["definitions"][cls.__name__]["title"] == cls.__name__ for cls in MODELS)

    @pytest.mark.parametrize("named", NAMED, ids=str)
    def test_takes_another_model_however_it_is_named(self, named: Any) -> None:
        validate({"parameters": {"text_generation": {"llm": named}}}, self.form(), raise_on_error=True)

    @pytest.mark.parametrize(
        ("given", "where", "why"),
        [
            ({"timeuot": 30}, "", "'timeuot' is not one of"),
            ({"api_key": "sk-1"}, "", "'api_key' is not one of"),
            ("OpenAILLM model=m api_key=sk-1", "", "is not valid"),
            ({"generation_kwargs": {"temprature": 1}}, ".generation_kwargs", "'temprature' was unexpected"),
            ({"generation_kwargs": {"temperature": -1}}, ".generation_kwargs.temperature", "-1 is less than"),
            ({"block_type_slug": "openai-llm", "modle": "m"}, "", "modle"),
            ({"block_type_slug": "openai-llm", "model": "m", "api_key": "sk-1"}, "", "api_key"),
            (5, "", "5 is not valid"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_refused_by_its_name(self, given: Any, where: str, why: str) -> None:
        with pytest.raises(ValidationError) as error:
            validate({"parameters": {"text_generation": {"llm": given}}}, self.form(), raise_on_error=True)
        assert f"'parameters.text_generation.llm{where}'" in str(error.value) and why in str(error.value)

    def test_a_second_model_of_a_step_is_treated_alike(self) -> None:
        own = OpenAILLM(model="own", api_key="key-of-its-own")
        step = Panel(name="panel", llm=own, judge=own)
        of = parameters_model([step])
        assert "key-of-its-own" not in f"{of.model_json_schema()} {of().model_dump_json()}"
        changed = with_parameters(step, validate_parameters(of, {"panel": {"judge": {"timeout": "30"}}})["panel"])
        assert (changed.llm, changed.judge) == (own, own.model_copy(update={"timeout": 30.0}))  # type: ignore
        other = OpenAILLM(model="other", api_key="key-of-the-other")
        given = validate_parameters(of, {"panel": {"judge": other}})
        assert with_parameters(step, given["panel"]).judge is other  # type: ignore
        assert to_json(given) == {"panel": {"judge": {"block_type_slug": "openai-llm", "model": "other"}}}
        with pytest.raises(
            ConfigurationError, match="`panel.judge`: there is no model `OpenAILM`: did you mean `OpenAILLM`?"
        ):
            validate_parameters(of, {"panel": {"judge": "OpenAILM"}})

    def test_what_nobody_filled_in_is_its_own(self, prefect_server: None, wire: Any) -> None:
        flow = written(wire.url).flow
        given = form(flow)["properties"]["parameters"]["default"]  # what a form says that nobody touched
        given["text_generation"]["llm"]["generation_kwargs"] |= {"stop": None, "temperature": 0.5}
        flow(**flow.validate_parameters({"parameters": given}))
        [request] = wire.requests
        assert (request.body["stop"], request.body["temperature"]) == (["."], 0.5)


def test_what_nobody_filled_in_was_not_given(tmp_path: Path, prefect_server: None) -> None:
    llm = LlamaServerLLM(generation_kwargs={"stop": ["."]})
    group = {"llm": {"generation_kwargs": {"stop": None, "max_new_tokens": 5}}}
    dataset = text_generation(llm=llm, limit=1, output=tmp_path / "out", parameters={"text_generation": group})
    run = json.loads((dataset.folder / "run.json").read_text())
    assert run["parameters"] == {"text_generation": {"llm": {"generation_kwargs": {"max_new_tokens": 5}}}}
    options = run["steps"]["text_generation"]["llm"]["generation_kwargs"]
    assert options == {"stop": ["."], "max_new_tokens": 5}, "what the model has of its own stays"


@each_model
class TestEveryModel:
    def test_its_options_are_fields(self, cls: type[LLM]) -> None:
        options = cls.model_json_schema()["properties"]["generation_kwargs"]["properties"]
        assert options.keys() == cls.Options.model_fields.keys()
        assert all(each.get("description") and each.get("title") for each in options.values())
        assert options["max_new_tokens"]["type"] == "integer"

    def test_no_field_is_without_a_heading(self, cls: type[LLM]) -> None:
        fields = cls.model_json_schema()["properties"]
        assert all(each.get("title") and each.get("description") for each in fields.values())

    def test_keys_are_masked_and_no_part_of_a_flow_s_form(self, cls: type[LLM]) -> None:
        schema = cls.model_json_schema()
        assert set(schema["secret_fields"]) == secret_fields(cls)
        assert not secret_fields(cls) & form(text_generation)["definitions"][cls.__name__]["properties"].keys()


def test_options_that_have_no_form_stay_a_dictionary() -> None:
    class Odd(LLM):
        """Takes a function."""

        @property
        def model_name(self) -> str:
            return "odd"

        def generate(self, inputs: Any, num_generations: int = 1, by: Callable[[], int] | None = None) -> Any:
            return [[None] * num_generations for _ in inputs]

    assert Odd.model_json_schema()["properties"]["generation_kwargs"]["type"] == "object"


@pytest.mark.slow
class TestSaved:
    """Blocks on a real server, also those that an earlier version of a model left."""

    @pytest.fixture(autouse=True)
    def saved(self, prefect_server: None) -> OpenAILLM:
        block = OpenAILLM(model="m", timeout=30)
        block.save("forms", overwrite=True)
        return block

    @pytest.fixture
    def rest(self, saved: OpenAILLM) -> Callable[..., httpx.Response]:
        """Prefect's API as anybody asks it."""

        def ask(method: str, path: str, body: Any = None) -> httpx.Response:
            return ask_server(method, f"{PREFECT_API_URL.value()}/{path}", body)

        return ask

    @pytest.mark.parametrize("named", NAMED, ids=str)
    def test_every_name_is_the_same_model(self, named: Any) -> None:
        found = text_generation.validate_parameters({"llm": named})["llm"]
        assert (type(found), found.model, found.timeout) == (OpenAILLM, "m", 30.0)

    def test_what_a_form_left_empty_was_not_given(self) -> None:
        options = {"temperature": 0.5, "stop": None, "extra_body": None}
        OpenAILLM(model="m", generation_kwargs=options).save("forms", overwrite=True)
        assert OpenAILLM.load("forms").generation_kwargs == {"temperature": 0.5}

    def test_a_field_more_is_another_version_of_the_form(self) -> None:
        class Grown(LlamaServerLLM):
            """A model with a field more."""

            voice: str = Field(default="calm", description="How it speaks.")

        Grown._block_type_name = LlamaServerLLM._block_type_name
        assert Grown._calculate_schema_checksum() != LlamaServerLLM._calculate_schema_checksum()

    def test_one_that_lacks_a_newer_field_has_its_default(self, rest: Callable[..., httpx.Response]) -> None:
        kept = {"model": "m", "generation_kwargs": {"temperature": "0.5"}}
        self.left(rest, kept)
        found = resolve_model("openai-llm/forms")
        assert isinstance(found, OpenAILLM) and found.timeout == 600.0
        assert found.options({}).model_dump(exclude_none=True) == {"temperature": 0.5}

    @pytest.mark.parametrize(
        ("kept", "why"),
        [
            ({"model": "m", "max_retries": 3}, "`OpenAILLM` has no `max_retries`: did you mean `max_schema_retries`?"),
            ({"base_url": "http://127.0.0.1"}, "`model`: Field required"),
        ],
    )
    def test_one_that_no_longer_fits_says_what_to_do(
        self, rest: Callable[..., httpx.Response], kept: dict[str, Any], why: str
    ) -> None:
        self.left(rest, kept)
        for load in (lambda: resolve_model("openai-llm/forms"), lambda: OpenAILLM.load("forms")):
            with pytest.raises((ValueError, RuntimeError)) as error:
                load()
            assert why in str(error.value) and "`prefect block delete openai-llm/forms`" in str(error.value)
        with get_client(sync_client=True) as client:  # and that is a cure
            client.request("DELETE", "/block_documents/{id}", path_params={"id": str(self.identity())})
        OpenAILLM(model="m").save("forms", overwrite=True)
        assert resolve_model("openai-llm/forms").model_name == "m"

    def left(self, rest: Callable[..., httpx.Response], data: dict[str, Any]) -> None:
        """Make the saved block what an earlier version kept."""
        body = {"data": data, "merge_existing_data": False}
        assert rest("PATCH", f"block_documents/{self.identity()}", body).is_success

    def identity(self) -> Any:
        with get_client(sync_client=True) as client:
            return client.read_block_document_by_name("forms", "openai-llm").id

    @pytest.mark.slow
    def test_a_deployment_takes_what_the_flow_does_and_refuses_the_rest(
        self, rest: Callable[..., httpx.Response], tmp_path: Path
    ) -> None:
        ignored = shutil.ignore_patterns("*.py", "__pycache__")
        folder = Path(shutil.copytree(SHIPPED, tmp_path / "deployments", ignore=ignored))
        replace_in_file(
            folder / "text_generation.yaml", "parameters: {output:", 'parameters: {limit: "5", output:', times=1
        )
        assert main(["--from", str(folder), "pools", "text_generation"]) == 0
        there = rest("GET", "deployments/name/text-generation/hosted").json()
        assert there["enforce_parameter_schema"] and there["parameters"]["limit"] == 5

        def start(given: dict[str, Any]) -> httpx.Response:
            later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
            body = {"parameters": given, "state": later}
            return rest("POST", f"deployments/{there['id']}/create_flow_run", body)

        reference = {"$ref": {"block_document_id": str(self.identity())}}
        for named in [*NAMED, reference]:
            assert start({"llm": named}).status_code == 201, named
        for given, name in WRONG:
            refused = start(given)
            assert refused.status_code == 409 and f"'{name}'" in refused.text, given
        rest("DELETE", f"deployments/{there['id']}")

    @pytest.mark.slow
    def test_a_pipeline_that_is_served_takes_a_saved_model_over_rest(
        self, rest: Callable[..., httpx.Response], wire: Any, tmp_path: Path
    ) -> None:
        other = OpenAILLM(model="other", base_url=wire.url, api_key="key-of-the-block")
        identity = other.save("other", overwrite=True)
        environment = {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        with (tmp_path / "log").open("wb") as log:
            served = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from tests.llms.config.test_forms import written; written().flow.serve(name='forms')",
                ],
                env=os.environ | environment,
                cwd=Path(__file__).parents[3],
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(
                lambda: rest("GET", "deployments/name/written/forms").is_success or served.poll() is not None, 120
            )
            there = rest("GET", "deployments/name/written/forms").json()

            def start(llm: Any) -> httpx.Response:
                given = {"output": str(tmp_path / "out"), "parameters": {"text_generation": {"llm": llm}}}
                return rest("POST", f"deployments/{there['id']}/create_flow_run", {"parameters": given})

            refused = start({"timeuot": 30})
            assert refused.status_code == 409 and "'timeuot' is not one of" in refused.text
            run = start({"$ref": {"block_document_id": str(identity)}}).json()
            wait_until(
                lambda: rest("GET", f"flow_runs/{run['id']}").json()["state_type"] in ("COMPLETED", "FAILED"), 120
            )
            run = rest("GET", f"flow_runs/{run['id']}").json()  # now: what Prefect ends a moment later, it cancels
        finally:
            served.terminate()
            served.wait(60)
        assert run["state_type"] == "COMPLETED", (tmp_path / "log").read_text()
        [request] = wire.requests
        assert (request.body["model"], request.headers["authorization"]) == ("other", "Bearer key-of-the-block")
        told = (tmp_path / "out" / "run.json").read_text()
        fields = {"block_type_slug": "openai-llm", "model": "other", "base_url": wire.url}
        assert json.loads(told)["parameters"] == {"text_generation": {"llm": fields}}
        assert "key-of-the-block" not in told and "key-of-the-block" not in json.dumps(run)
