"""Every model, the same questions: a new module of `llms/` is asked them by existing. And models of the user's own."""

import asyncio
import copy
import json
import pickle
import pkgutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import isabstract
from typing import Annotated, Any, ClassVar, get_args  # noqa: UP035  (the seed's own spelling)

import numpy as np
import pytest
from prefect import flow
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from prefect.utilities.dispatch import get_registry_for_type
from prefect.utilities.hashing import hash_objects
from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError, create_model, validate_call

import llms
from llms import (
    LLM,
    AnyLLM,
    AsyncLLM,
    Fatal,
    LlamaServerLLM,
    OpenAILLM,
    Rejected,
    RemoteLLM,
    StructuredLLM,
    Throttled,
    Transient,
)
from llms.any_llm import model_classes, resolve_model
from llms.clients import event_loop
from llms.limits.usage import UsageCollector
from llms.typing import ChatType, GenerateOutput, HiddenState, Usage
from tests.support.api_profiles import installed, profile_of, sample, some, ways

for module in pkgutil.iter_modules(llms.__path__, "llms."):
    import_module(module.name)

MODELS = [cls for cls in model_classes().values() if cls.__module__.startswith("llms.") and not isabstract(cls)]
WITH_KEY = [cls for cls in MODELS if issubclass(cls, RemoteLLM)]
CHAT: ChatType = [{"role": "user", "content": "What's the capital of Spain?"}]


def each(classes):
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


def numbers(cls: type[LLM]) -> list[str]:
    """The options that take a number and no text."""
    kinds = {name: set(get_args(field.annotation)) for name, field in cls.Options.model_fields.items()}
    return [name for name, kind in kinds.items() if kind & {int, float} and str not in kind]


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """The models a test defines are gone after it."""
    known = get_registry_for_type(Block)
    assert known
    before = dict(known)
    yield
    known.clear()
    known.update(before)


def echo(request: Any) -> Any:
    return {"choices": [{"index": 0, "message": {"content": request.body["messages"][-1]["content"]}}]}


# ---------------------------------------------------------------------------------------------------------- every model


@each(MODELS)
class TestBlockStandards(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, cls):
        return cls

    test_has_a_valid_image = None  # downloads the logo: the tests stay on this machine


@each(MODELS)
def test_is_exported_under_its_own_name(cls):
    assert getattr(llms, cls.__name__) is cls and cls.__name__ in llms.__all__


@each(MODELS)
def test_has_a_slug_that_is_its_name(cls):
    assert cls.get_block_type_slug().replace("-", "") == cls.__name__.lower()


@each(MODELS)
def test_refuses_a_misspelt_field_and_names_the_right_one(cls):
    with pytest.raises(ValidationError, match=f"`{cls.__name__}` has no `generation_kwarg`.*`generation_kwargs`"):
        some(cls, generation_kwarg={})


@each(MODELS)
def test_refuses_an_unknown_runtime_parameter_and_names_the_right_one(cls):
    name = sorted(cls.Options.model_fields)[0]
    with pytest.raises(Fatal, match=f"`{cls.__name__}`.*no `{name}s`: did you mean `{name}`"):
        some(cls).options({f"{name}s": 1})
    with pytest.raises(Fatal, match=f"no `{name}s`"):
        some(cls, generation_kwargs={f"{name}s": 1}).options({})


@each(MODELS)
def test_a_value_of_the_wrong_type_is_refused_without_repeating_it(cls):
    for name in numbers(cls):
        with pytest.raises(Fatal, match=f"`{name}`") as failure:
            some(cls).options({name: "sk-secret"})
        assert "sk-secret" not in str(failure.value)


@each(MODELS)
def test_runtime_parameters_are_coerced_from_strings(cls):
    assert numbers(cls)
    for name in numbers(cls):
        value = getattr(some(cls).options({name: "1"}), name)
        assert value == 1 and not isinstance(value, str)


@each(MODELS)
def test_its_own_generation_kwargs_hold_until_a_call_says_otherwise(cls):
    first, second = sorted(cls.Options.model_fields)[:2]
    own = {first: sample(cls.Options, first), second: sample(cls.Options, second)}
    llm = some(cls, generation_kwargs=own)
    assert llm.options({}) == cls.Options(**own)
    assert llm.options({second: None}) == cls.Options(**own | {second: None})


@each(MODELS)
def test_every_option_is_described_and_unset_by_default(cls):
    for name, field in cls.Options.model_fields.items():
        assert field.description and field.default is None, name


@each(MODELS)
def test_pickles_and_copies_equal(cls):
    llm = some(cls, generation_kwargs={sorted(cls.Options.model_fields)[0]: 1})
    for again in (pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm), llm.model_copy(), cls(**llm.model_dump())):
        assert type(again) is cls and again == llm and hash_objects(again) == hash_objects(llm) is not None
    assert hash_objects(llm) != hash_objects(llm.model_copy(update={"generation_kwargs": {}}))


@each(MODELS)
def test_is_saved_and_loads_back_equal(cls, prefect_server):
    llm = some(cls, generation_kwargs={sorted(cls.Options.model_fields)[0]: 1})
    llm.save("mine", overwrite=True)
    loaded = cls.load("mine")
    assert type(loaded) is cls and loaded == llm
    assert Block.load(f"{cls.get_block_type_slug()}/mine") == llm


@each([cls for cls in MODELS if issubclass(cls, StructuredLLM)])
def test_a_structure_given_as_a_class_is_saved_as_a_schema(cls, prefect_server):
    class User(BaseModel):
        name: str

    llm = some(cls, structured_output={"schema": User})
    assert llm.structured_output == {"format": "json", "schema": User.model_json_schema()}
    llm.save("structured", overwrite=True)
    assert cls.load("structured").structured_output == llm.structured_output
    assert pickle.loads(pickle.dumps(llm)) == llm


@each(MODELS)
def test_load_reads_a_block_on_the_class_and_readies_one_on_an_instance(cls, prefect_server, monkeypatch):
    readied = []
    monkeypatch.setattr(cls, "prepare", lambda self: readied.append(self))
    some(cls).save("ready", overwrite=True)
    llm = cls.load("ready")
    assert not readied
    assert llm.load() is None and readied == [llm]


@each(MODELS)
def test_unloading_is_harmless_however_often(cls):
    llm = some(cls)
    llm.unload()
    llm.unload()


@each(MODELS)
def test_says_that_it_has_no_hidden_states_or_gives_them(cls):
    llm = some(cls)
    if type(llm).get_last_hidden_state is not LLM.get_last_hidden_state:
        pytest.skip("gives them")
    with pytest.raises(Fatal, match=cls.__name__):
        llm.get_last_hidden_states([CHAT])


# ----------------------------------------------------------------------------------------------------- those with a key


def key_env(cls: type[RemoteLLM]) -> str:
    """The variable of a class's key."""
    return profile_of(cls).key_env or cls._api_key_env


def keyless(cls: type[RemoteLLM], **fields: Any) -> Any:
    """A model that has everything but a key."""
    way = ways(cls)[0]
    if not installed(way.profile):
        pytest.skip(f"`{way}` needs `{way.profile.package}`")
    return cls(**way.fields("http://localhost") | {"api_key": None} | fields)


@each(WITH_KEY)
def test_the_key_shows_nowhere(cls, wire):
    first, second = (some(cls, api_key=key, base_url=wire.url) for key in ("sk-secret-1", "sk-secret-2"))
    assert first != second
    for show in (repr, str, lambda llm: llm.model_dump_json(), lambda llm: str(llm.model_dump(mode="json"))):
        assert show(first) == show(second)
        assert "sk-secret" not in show(first)
    with pytest.raises(ValidationError) as misspelt:
        some(cls, api_key="sk-secret-1", api_keys="sk-secret-2")
    assert "sk-secret" not in str(misspelt.value)


@each([cls for cls in WITH_KEY if profile_of(cls).needs_key])
def test_without_a_key_says_which_variable_would_hold_it(cls, monkeypatch, tmp_path):
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # nor does Google's login look for a key elsewhere
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    llm = keyless(cls)
    for ask in (llm.load, lambda: llm.generate([CHAT]), lambda: llm.generate_outputs([CHAT])):
        with pytest.raises(Fatal, match=f"`{cls.__name__}` has no (API key|credentials).*`api_key=`.*`{key_env(cls)}`"):
            ask()


@each([cls for cls in WITH_KEY if profile_of(cls).needs_key])
def test_the_key_is_read_from_the_environment_and_not_kept(cls, monkeypatch):
    monkeypatch.setenv(key_env(cls), "sk-secret")
    llm = keyless(cls)
    llm.load()
    assert llm.api_key is None and b"sk-secret" not in pickle.dumps(llm)


@each(WITH_KEY)
def test_a_saved_key_comes_back_and_is_nowhere_in_clear(cls, prefect_server):
    llm = some(cls, api_key="sk-secret")
    llm.save("with-key", overwrite=True)
    assert cls.load("with-key").api_key.get_secret_value() == "sk-secret"
    with get_client(sync_client=True) as client:
        shown = client.read_block_document_by_name("with-key", cls.get_block_type_slug(), include_secrets=False)
    assert "sk-secret" not in shown.model_dump_json() and shown.data["api_key"]


@each(WITH_KEY)
def test_an_unknown_way_to_hold_to_a_schema_is_refused(cls):
    with pytest.raises(ValidationError, match="structured_mode"):
        some(cls, structured_mode="by asking nicely")
    if "tool" not in cls._structured_modes:
        with pytest.raises(Fatal, match=f"`{cls.__name__}` has no `structured_mode=tool`"):
            keyless(cls, api_key="k", structured_mode="tool", structured_output={"schema": {"type": "object"}}).load()


# -------------------------------------------------------------------------------- the user's own, as the documents show


class CustomLLM(LLM):
    @property
    def model_name(self) -> str:
        return "my-model"

    @validate_call
    def generate(self, inputs: list[ChatType], num_generations: int = 1, **kwargs: Any) -> list[GenerateOutput]:
        return [[f"{chat[-1]['content']} {kwargs}" for _ in range(num_generations)] for chat in inputs]

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        return [np.zeros((len(chat), 4)) for chat in inputs]


class CustomAsyncLLM(AsyncLLM):
    @property
    def model_name(self) -> str:
        return "my-model"

    @validate_call
    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        return [f"{input[-1]['content']} {kwargs}" for _ in range(num_generations)]

    def get_last_hidden_state(self, inputs: list[ChatType]) -> list[HiddenState]:
        return [np.zeros((len(chat), 4)) for chat in inputs]


class Typed(LLM):
    """Says what it was given."""

    @property
    def model_name(self) -> str:
        return "typed"

    @validate_call
    def generate(
        self,
        inputs: list[ChatType],
        num_generations: int = 1,
        temperature: float = 0.7,
        max_new_tokens: Annotated[int, Field(gt=0)] | None = None,
    ) -> list[GenerateOutput]:
        return [[f"{temperature!r} {max_new_tokens!r}"] * num_generations for _ in inputs]


class TypedAsync(AsyncLLM):
    """Says what it was given, later."""

    @property
    def model_name(self) -> str:
        return "typed"

    @validate_call
    async def agenerate(self, input: ChatType, num_generations: int = 1, *, temperature: float = 0.7) -> GenerateOutput:
        return [repr(temperature)] * num_generations


@each([CustomLLM, CustomAsyncLLM])
class TestModelsOfTheUsersOwn:
    def test_generate_takes_any_runtime_parameter(self, cls):
        for ask in (cls().generate, cls().generate_outputs):
            assert ask([CHAT, CHAT], num_generations=2) == [["What's the capital of Spain? {}"] * 2] * 2
            assert ask([CHAT], anything=1) == [["What's the capital of Spain? {'anything': 1}"]]
        llm = cls(generation_kwargs={"anything": 1})
        assert llm.generate_outputs([CHAT], more=2)[0][0].endswith("{'anything': 1, 'more': 2}")

    def test_every_answer_is_a_generate_output(self, cls):
        (output,) = cls().generate_outputs([CHAT])
        assert type(output) is GenerateOutput and output.error is None and output.finish_reasons == [None]

    def test_hidden_states_go_by_both_names(self, cls):
        (state,) = cls().get_last_hidden_states([CHAT])
        assert state.shape == (1, 4)

    def test_misspelt_roles_are_found_by_validate_call(self, cls):
        chat: Any = [{"role": "usr", "content": "Hi"}]
        (output,) = cls().generate_outputs([chat])
        assert output == [None] and isinstance(output.error, Rejected) and "role" in str(output.error)

    def test_it_is_a_block_and_pickles(self, cls, prefect_server):
        llm = cls(generation_kwargs={"anything": 1})
        llm.save("custom", overwrite=True)
        assert cls.load("custom") == llm and llm.load() is None
        assert pickle.loads(pickle.dumps(llm)) == llm

    def test_it_can_be_named_in_a_shell(self, cls):
        assert resolve_model(cls.__name__) == cls() == resolve_model({"block_type_slug": cls.get_block_type_slug()})


@each([Typed, TypedAsync])
class TestKeywordParameters:
    def test_become_options(self, cls):
        assert "temperature" in cls.Options.model_fields and "num_generations" not in cls.Options.model_fields
        with pytest.raises(Fatal, match=f"`{cls.__name__}`.*no `temprature`: did you mean `temperature`"):
            cls().generate_outputs([CHAT], temprature=0.3)

    def test_keep_their_defaults(self, cls):
        assert cls().generate_outputs([CHAT])[0][0].startswith("0.7")

    def test_are_coerced_from_strings(self, cls):
        assert cls().generate_outputs([CHAT], temperature="0.5")[0][0].startswith("0.5")
        assert cls(generation_kwargs={"temperature": "0.5"}).generate_outputs([CHAT])[0][0].startswith("0.5")
        assert cls().generate([CHAT], temperature="0.5")[0][0].startswith("0.5")

    def test_of_the_wrong_type_are_refused(self, cls):
        with pytest.raises(Fatal, match="`temperature`"):
            cls().generate_outputs([CHAT], temperature="warm")


def test_constraints_of_a_signature_hold():
    assert Typed().generate_outputs([CHAT], max_new_tokens="7") == [["0.7 7"]]
    with pytest.raises(Fatal, match="`max_new_tokens`"):
        Typed().generate_outputs([CHAT], max_new_tokens=0)


def test_a_subclass_that_passes_everything_on_keeps_the_options_of_its_parent(wire):
    class Shouting(OpenAILLM):
        """OpenAI, in capitals."""

        async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
            output = await super().agenerate(input, num_generations, **kwargs)
            output[:] = [text and text.upper() for text in output]
            return output

    llm = Shouting(model="m", base_url=wire.url, api_key="k")
    assert llm.generate([CHAT], temperature=0) == [["MADRID."]]
    assert wire.requests[0].body["temperature"] == 0
    with pytest.raises(Fatal, match="did you mean `temperature`"):
        llm.generate([CHAT], temprature=0)


def test_a_subclass_with_a_parameter_of_its_own_keeps_those_of_its_parent(wire):
    class Styled(OpenAILLM):
        """OpenAI, in style."""

        async def agenerate(
            self, input: ChatType, num_generations: int = 1, style: str = "plain", **kwargs: Any
        ) -> GenerateOutput:
            told: ChatType = [{"role": "system", "content": f"Be {style}."}, *input]
            return await super().agenerate(told, num_generations, **kwargs)

    llm = Styled(model="m", base_url=wire.url, api_key="k")
    llm.generate([CHAT], style="grand", max_new_tokens="7")
    system = {"role": "system", "content": "Be grand."}
    assert wire.requests[0].body == {"model": "m", "messages": [system, *CHAT], "max_completion_tokens": 7}
    with pytest.raises(Fatal, match="did you mean `temperature`"):
        llm.generate([CHAT], temprature=0)


def test_a_subclass_does_not_take_its_parents_place(prefect_server):
    OpenAILLM(model="gpt-4").save("parent", overwrite=True)

    class Extended(OpenAILLM):
        """OpenAI, with something on top."""

    assert model_classes()["OpenAILLM"] is OpenAILLM and model_classes()["Extended"] is Extended
    assert type(Block.load("openai-llm/parent")) is OpenAILLM
    assert Extended.get_block_type_slug() == "extended"


@pytest.mark.parametrize("outputs", [None, [], [["a"], ["b"]]], ids=["none", "none of one", "two of one"])
def test_a_wrong_number_of_outputs_is_an_error_that_names_the_class(outputs):
    class Miscounting(CustomLLM):
        """Answers one chat with so many outputs."""

        def generate(self, inputs: Any, num_generations: int = 1) -> Any:
            return outputs

    with pytest.raises(Fatal, match=r"`Miscounting.generate` returned (nothing|0 outputs|2 outputs) for 1 chats"):
        Miscounting().generate_outputs([CHAT])


def test_a_chat_that_breaks_the_engine_costs_only_its_own_answer():
    class Fragile(CustomLLM):
        """Does not like thirteen."""

        def generate(self, inputs: Any, num_generations: int = 1) -> Any:
            if any("13" in chat[0]["content"] for chat in inputs):
                raise ZeroDivisionError("thirteen")
            return [[chat[0]["content"]] * num_generations for chat in inputs]

    outputs = Fragile().generate_outputs([[{"role": "user", "content": str(number)}] for number in range(20)], 2)
    assert outputs.pop(13) == [None, None]
    assert outputs == [[str(number)] * 2 for number in range(20) if number != 13]


def test_what_was_answered_is_kept_when_a_later_part_of_the_batch_breaks():
    """Two structures are two models, asked one after the other."""

    class Breaking(CustomLLM):
        """Is asked for one structure, and breaks at the other."""

        asked: ClassVar[list[str]] = []
        broken: ClassVar[bool] = True
        held: str = ""

        def with_structured_output(self, structured_output: Any) -> Any:
            return self.model_copy(update={"held": structured_output})

        def generate(self, inputs: Any, num_generations: int = 1) -> Any:
            self.asked.append(self.held)
            if self.broken and self.held == "b":
                raise Fatal("out of memory")
            return [GenerateOutput([self.held] * num_generations, usage=Usage(3, 1), cost=0.5) for _ in inputs]

    chats = [(CHAT, "a"), (CHAT, "a"), (CHAT, "b")]
    with pytest.raises(Fatal, match="out of memory"), UsageCollector().activate() as usage:
        Breaking().generate_outputs(chats)
    (used,) = usage.by_model.values()
    assert (used.usage, used.cost) == (Usage(6, 2), 1.0)
    Breaking.broken = False
    outputs = Breaking().generate_outputs(chats)
    assert outputs == [["a"], ["a"], ["b"]] and [output.cached for output in outputs] == [True, True, False]
    assert Breaking.asked == ["a", "b", "b"]


@pytest.mark.parametrize(
    "odd",
    [[42], ["a", "b"], GenerateOutput(["a"], finish_reasons=["stop", "stop"]), GenerateOutput(["a"], usage=7)],  # type: ignore[arg-type]
    ids=["a number", "two for one", "too many reasons", "no usage"],
)
def test_an_odd_output_of_a_batch_costs_its_own_row(odd):
    class Odd(CustomLLM):
        """Answers the second chat oddly."""

        def generate(self, inputs: Any, num_generations: int = 1) -> Any:
            return [odd if at == 1 else ["fine"] for at in range(len(inputs))]

    first, bad, last = Odd().generate_outputs([CHAT] * 3)
    assert first == last == ["fine"]
    assert bad == [None] and isinstance(bad.error, Rejected)


def test_what_a_batch_costs_is_known_where_its_model_knows_a_price():
    class Priced(CustomLLM):
        """A dollar a token; what it says itself of its cost goes before."""

        def cost(self, usage: Usage) -> float:
            return usage.input_tokens

        def generate(self, inputs: Any, num_generations: int = 1) -> Any:
            return [GenerateOutput(["x"], usage=Usage(3, 0)), GenerateOutput(["x"], usage=Usage(3, 0), cost=0.5)]

    assert [output.cost for output in Priced().generate_outputs([CHAT, CHAT])] == [3, 0.5]
    assert [output.cost for output in CustomLLM().generate_outputs([CHAT])] == [None]


class Held(StructuredLLM):
    """Says what it is held to; a pattern is too much for it."""

    @property
    def model_name(self) -> str:
        return "held"

    def generate(self, inputs: list[ChatType], num_generations: int = 1) -> list[GenerateOutput]:
        structure = self.structured_output or {}
        if structure.get("format") == "regex":
            raise Fatal("`structured_output` needs `max_new_tokens` of 9 or more: 3 is too small.")
        return [GenerateOutput([json.dumps(structure.get("schema"))] * num_generations) for _ in inputs]


class HeldAsync(AsyncLLM, StructuredLLM):
    """The same, one at a time."""

    @property
    def model_name(self) -> str:
        return "held"

    async def agenerate(self, input: ChatType, num_generations: int = 1) -> GenerateOutput:
        structure = self.structured_output or {}
        if structure.get("format") == "regex":
            raise Fatal("`structured_output` needs `max_new_tokens` of 9 or more: 3 is too small.")
        return GenerateOutput(['{"x": 1}'] * num_generations)


@each([Held, HeldAsync])
def test_a_structure_of_a_rows_own_that_does_not_fit_costs_that_row(cls):
    good, bad, last = cls().generate_outputs([CHAT, (CHAT, {"schema": "[a-z]{30}"}), CHAT])
    assert good == last and good[0] and not good.error
    assert isinstance(bad.error, Rejected) and "`max_new_tokens` of 9" in str(bad.error) and bad.attempts == 0
    with pytest.raises(Fatal, match="`max_new_tokens` of 9"):  # the model's own, which all rows are held to
        cls(structured_output={"schema": "[a-z]{30}"}).generate_outputs([CHAT, CHAT])


def test_two_classes_of_one_name_are_two_structures():
    def named(**fields: Any) -> type[BaseModel]:
        return create_model("User", __module__="same", **fields)

    one, other = named(name=(str, ...)), named(age=(int, ...))
    assert f"{one}" == f"{other}"
    outputs = Held().generate_outputs([(CHAT, {"schema": one}), (CHAT, {"schema": other}), (CHAT, one)])
    assert [list(json.loads(output[0] or "")["properties"]) for output in outputs] == [["name"], ["age"], ["name"]]


def test_a_class_that_has_no_schema_costs_its_own_row():
    class Unsayable(BaseModel):
        call: Callable[[], int]

    bad, good = Held().generate_outputs([(CHAT, {"schema": Unsayable}), CHAT])
    assert isinstance(bad.error, Rejected) and "JsonSchema" in str(bad.error) and good == ["null"]


class Leaky(CustomLLM):
    """Repeats the key it was given in whatever it says."""

    token: SecretStr = SecretStr("sk-of-the-field")

    def prepare(self) -> None:
        raise Fatal("no entry with sk-of-the-field")

    def generate(self, inputs: Any, num_generations: int = 1) -> Any:
        raise (Fatal if "fatal" in inputs[0][0]["content"] else ValueError)(f"no entry with {self.words()}")

    def words(self) -> str:
        return " ".join([self.token.get_secret_value(), *SECRET.values(), "http://me:sk-of-the-url@proxy:3128"])


SECRET = {
    "AZURE_OPENAI_AD_TOKEN": "sk-of-azure",
    "OTHER_PROVIDER_API_KEY": "sk-of-another",
    "SOME_SECRET": "sk-of-something",
    "AWS_SECRET_ACCESS_KEY": "sk-of-amazon",
}


def test_no_secret_is_in_what_a_batch_says(monkeypatch):
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    (output,) = Leaky().generate_outputs([CHAT])
    with pytest.raises(Fatal) as fatal:
        Leaky().generate_outputs([[{"role": "user", "content": "fatal"}]])
    with pytest.raises(Fatal) as unready:
        Leaky().load()
    for error in (output.error, fatal.value, unready.value):
        assert "no entry with ***" in str(error)
        assert "sk-of" not in repr(error) + repr(vars(error)) and b"sk-of" not in pickle.dumps(error)


def test_no_secret_is_in_what_a_model_that_is_not_ready_says():
    class LeakyAsync(CustomAsyncLLM):
        """The same."""

        token: SecretStr = SecretStr("sk-of-the-field")
        prepare = Leaky.prepare

    with pytest.raises(Fatal, match=r"no entry with \*\*\*"):
        LeakyAsync().generate([CHAT])


def test_a_key_that_is_found_elsewhere_is_a_secret_too(wire):
    class Elsewhere(OpenAILLM):
        """Has its key from a file, as some providers do."""

        def _resolve_api_key(self) -> str:
            return "sk-of-a-file"

    wire.answer = lambda request: wire.Reply({"error": {"message": "no sk-of-a-file"}}, status=400)
    (output,) = Elsewhere(model="m", base_url=wire.url).generate([CHAT])
    assert wire.requests[0].headers["authorization"] == "Bearer sk-of-a-file"
    assert "no ***" in str(output.error)


def test_a_chat_that_breaks_an_async_engine_costs_only_its_own_answer():
    class FragileAsync(CustomAsyncLLM):
        """Does not like thirteen."""

        async def agenerate(self, input: ChatType, num_generations: int = 1) -> Any:
            if input[0]["content"] == "13":
                raise ZeroDivisionError("thirteen")
            return [input[0]["content"]] * num_generations

    outputs = FragileAsync().generate([[{"role": "user", "content": str(number)}] for number in range(20)], 2)
    bad = outputs.pop(13)
    assert bad == [None, None] and bad.finish_reasons == ["error", "error"]
    assert isinstance(bad.error, Rejected) and "FragileAsync" in str(bad.error) and "thirteen" in str(bad.error)
    assert outputs == [[str(number)] * 2 for number in range(20) if number != 13]


def test_a_fatal_condition_stops_a_batch():
    class Unpaid(CustomLLM):
        """Wants money first."""

        asked: int = 0

        def generate(self, inputs: Any, num_generations: int = 1) -> Any:
            self.asked += 1
            raise Fatal("pay first")

    llm = Unpaid()
    with pytest.raises(Fatal, match="pay first"):
        llm.generate_outputs([CHAT, CHAT])
    assert llm.asked == 1


def test_a_text_instead_of_a_list_of_texts_is_an_error_that_says_so():
    class Chatty(CustomLLM):
        """Answers with a text."""

        def generate(self, inputs: Any, num_generations: int = 1) -> Any:
            return ["Madrid." for _ in inputs]

    with pytest.raises((TypeError, Fatal), match="list of texts"):
        Chatty().generate_outputs([CHAT])


def test_at_most_so_many_requests_are_in_flight(wire):
    wire.answer = lambda request: wire.Reply(delay=0.01)
    llm = OpenAILLM(model="m", base_url=wire.url, api_key="k", max_concurrency=3)
    llm.generate([CHAT] * 30)
    assert wire.peak <= 3


def test_equal_models_share_their_places(wire):
    wire.answer = lambda request: wire.Reply(delay=0.01)
    threads = [threading.Thread(target=slow(wire).generate, args=([CHAT] * 15,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wire.requests) == 45 and wire.peak <= 3


def slow(wire: Any) -> OpenAILLM:
    return OpenAILLM(model="m", base_url=wire.url, api_key="k", max_concurrency=3)


# ------------------------------------------------------------------------------------------- from wherever it is called


@pytest.fixture
def llm(wire) -> OpenAILLM:
    """A model that repeats the user."""
    wire.answer = lambda request: wire.Reply(echo(request))
    return OpenAILLM(model="m", base_url=wire.url, api_key="k", timeout=10)


def chat(text: str) -> ChatType:
    return [{"role": "user", "content": text}]


def test_from_many_threads_at_once(llm):
    answers: dict[int, Any] = {}
    ask = lambda number: answers.update({number: llm.generate([chat(f"{number} {at}") for at in range(5)])})  # noqa: E731
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [[f"{number} {at}"] for at in range(5)] for number in range(20)}


def test_inside_a_running_event_loop_and_again_in_another(llm):
    async def notebook() -> Any:
        return llm.generate([chat("a"), chat("b")])

    assert [asyncio.run(notebook()) for _ in range(3)] == [[["a"], ["b"]]] * 3


def test_awaited_on_a_loop_of_the_callers_own(llm):
    async def script() -> Any:
        return await asyncio.gather(*(llm.agenerate(chat(str(number))) for number in range(20)))

    for _ in range(2):
        assert asyncio.run(script()) == [[str(number)] for number in range(20)]


def test_on_the_models_own_loop_it_says_what_to_do_instead(llm):
    async def nested() -> Any:
        return llm.generate([CHAT])

    with pytest.raises(RuntimeError, match="await `agenerate`"):
        event_loop.run(nested())


def test_after_everything_was_closed(llm):
    for _ in range(3):
        assert llm.generate([chat("a")]) == [["a"]]
        event_loop.close()
        event_loop.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "llms"]


@pytest.mark.slow
def test_a_caller_that_gives_up_takes_its_requests_along(wire):
    asked = threading.Event()

    def answer(request):
        asked.set()
        return wire.Reply(delay=0.3)

    wire.answer = answer
    script = (
        "from llms import OpenAILLM\n"
        f"llm = OpenAILLM(model='m', base_url={wire.url!r}, api_key='k', max_concurrency=2)\n"
        "try:\n"
        "    llm.generate([[{'role': 'user', 'content': 'Hi'}]] * 1000)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert asked.wait(60)
    caller.send_signal(signal.SIGINT)
    assert caller.communicate(timeout=60) == ("interrupted\n", "") and caller.returncode == 0
    assert len(wire.requests) < 20


FORKS = """
import gc, multiprocessing, os, sys
from llms import OpenAILLM

llm = OpenAILLM(model="m", base_url=sys.argv[1], api_key="k", timeout=5)

def ask(text):
    return llm.generate([[{"role": "user", "content": text}]])[0][0]

print(ask("parent"), flush=True)
if not (child := os.fork()):
    print(ask("child"), flush=True)
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(ask, ["one", "two"]), flush=True)
print(ask("parent again"))
"""


@pytest.mark.slow
def test_in_a_forked_child_and_afterwards_in_its_parent(wire):
    wire.answer = lambda request: wire.Reply(echo(request))
    done = subprocess.run([sys.executable, "-c", FORKS, wire.url], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.split("\n") == ["parent", "child", "one two", "parent again", ""]
    assert len(wire.requests) == 5  # none had to be sent twice


# ----------------------------------------------------------------------------------------- a model, however it is named


@flow
def asks(llm: AnyLLM) -> str:
    return llm.model_name


@pytest.fixture(scope="module")
def saved(prefect_server) -> OpenAILLM:
    llm = OpenAILLM(model="gpt-4", api_key="sk-secret")
    llm.save("prod", overwrite=True)
    return llm


class TestAnyLLM:
    def test_a_model_is_itself(self):
        llm = OpenAILLM(model="gpt-4")
        assert resolve_model(llm) is llm

    @pytest.mark.parametrize(
        "named",
        [
            "OpenAILLM model=gpt-4",
            "openai-llm model=gpt-4",
            ' OpenAILLM  model="gpt-4" ',
            '{"block_type_slug": "openai-llm", "model": "gpt-4"}',
            {"block_type_slug": "openai-llm", "model": "gpt-4"},
            {"block_type_slug": "OpenAILLM", "model": "gpt-4"},
        ],
        ids=str,
    )
    def test_a_class_and_its_fields(self, named):
        assert resolve_model(named) == OpenAILLM(model="gpt-4")

    def test_fields_may_hold_json_and_addresses(self):
        named = """OpenAILLM model=m base_url=http://127.0.0.1:1/v1 generation_kwargs='{"temperature": 0.3}'"""
        assert resolve_model(named) == OpenAILLM(
            model="m", base_url="http://127.0.0.1:1/v1", generation_kwargs={"temperature": 0.3}
        )

    def test_a_model_without_fields(self):
        assert resolve_model("LlamaServerLLM") == LlamaServerLLM()

    def test_a_saved_block(self, saved):
        identity = str(saved._block_document_id)
        for named in (
            "openai-llm/prod",
            {"$ref": "openai-llm/prod"},
            {"$ref": {"block_document_slug": "openai-llm/prod"}},
            {"$ref": {"block_document_id": identity}},
            json.dumps({"$ref": {"block_document_id": identity}}),
        ):
            assert resolve_model(named) == saved

    def test_a_saved_block_inside_a_running_event_loop(self, saved):
        async def parameters() -> LLM:
            return resolve_model("openai-llm/prod")

        assert asyncio.run(parameters()) == saved

    @pytest.mark.parametrize(
        ("named", "cure"),
        [
            ("OpenAILM model=gpt-4", "no model `OpenAILM`: did you mean `OpenAILLM`"),
            ({"block_type_slug": "openai-lm", "model": "m"}, "no model `openai-lm`: did you mean `openai-llm`"),
            ("OpenAILLM modl=gpt-4", "no `modl`: did you mean `model`"),
            ("OpenAILLM", "`model`: Field required"),
            ("OpenAILLM gpt-4", "`gpt-4` is not a field.*`name=value`"),
            ("OpenAILLM model=m timeout=soon", "`timeout`"),
            ("OpenAILLM model='m", "OpenAILLM model=gpt-5"),
            ("OpenAILLM model=m generation_kwargs={temperature", "`generation_kwargs`"),
            ("", "a model is named like"),
            ("{model", "a model is named like"),
            ('{"model": "gpt-4"}', "a model is named like"),
            ({"model": "gpt-4"}, "a model is named like"),
            (7, "a model is named like"),
            (None, "a model is named like"),
        ],
        ids=str,
    )
    def test_what_names_no_model_is_refused_with_the_cure(self, named, cure):
        with pytest.raises(ValueError, match=cure):
            resolve_model(named)

    @pytest.mark.parametrize(
        "named",
        [
            {"model": "gpt-4", "api_key": "sk-secret"},
            {"block_type_slug": "openai-llm", "api_key": "sk-secret"},
            "OpenAILLM api_key=sk-secret",
            "OpenAILLM model=m timeout=sk-secret",
        ],
        ids=["no class", "no model", "no model in a string", "bad value"],
    )
    def test_no_refusal_repeats_a_key(self, named):
        with pytest.raises(ValueError) as refusal:
            resolve_model(named)
        assert "sk-secret" not in str(refusal.value)

    def test_a_block_that_is_not_there(self, saved):
        with pytest.raises(ValueError, match=r"no saved block `openai-llm/nowhere`: save one"):
            resolve_model("openai-llm/nowhere")
        with pytest.raises(ValueError, match="no saved block"):
            resolve_model({"$ref": {"block_document_id": "00000000-0000-0000-0000-000000000000"}})

    def test_a_block_that_is_no_model(self, saved):
        Secret(value="sk-secret").save("no-model", overwrite=True)
        with pytest.raises(ValueError, match="^the block `secret/no-model` is a `Secret`, not a model"):
            resolve_model("secret/no-model")

    def test_as_a_field(self):
        assert TypeAdapter(AnyLLM).validate_python("OpenAILLM model=gpt-4") == OpenAILLM(model="gpt-4")
        with pytest.raises(ValidationError, match="did you mean `OpenAILLM`"):
            TypeAdapter(AnyLLM).validate_python("OpenAILM")

    def test_as_a_parameter_of_a_flow(self, saved):
        assert asks("openai-llm/prod") == "gpt-4" == asks(OpenAILLM(model="gpt-4"))

    def test_the_form_has_a_tab_for_every_model(self):
        schema = asks.parameters.model_dump()["properties"]["llm"]
        assert len(schema["anyOf"]) == 1 + len(MODELS)  # and one for a name


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", [Fatal, Rejected, Throttled, Transient], ids=lambda kind: kind.__name__)
def test_errors_survive_a_process(kind):
    error = kind("no", status=429, code="slow_down", request_id="req-1", retry_after=2.0, attempts=3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == "no" and vars(again) == vars(error)


def test_outputs_survive_a_process():
    output = GenerateOutput(["a", None], usage=Usage(1, 2, 3, 4), seconds=0.5, attempts=2, error=Rejected("no"))
    again = pickle.loads(pickle.dumps(output))
    assert again == output and type(again) is GenerateOutput
    assert again.usage == output.usage and again.attempts == 2 and str(again.error) == "no"
