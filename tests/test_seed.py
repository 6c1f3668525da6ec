"""The document this project rests on, snippet by snippet: as it is written there, only the import line changed.

What the snippets take from their surroundings is given to them: the endpoint and key of an OpenAI-compatible server
(llama.cpp's own, with the demo model), and the path of a GGUF file.
"""

import ast
import json
import re

import pytest

from llms.typing import StructuredOutputType

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def openai(openai_server, monkeypatch):
    """OpenAI, as far as a snippet can tell."""
    monkeypatch.setenv("OPENAI_BASE_URL", openai_server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", openai_server.api_key)


def run(snippet: str, **names):
    """The names a snippet leaves behind; `_` is the value of its last line, if that is an expression."""
    tree = ast.parse(snippet)
    if isinstance(last := tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Assign([ast.Name("_", ast.Store())], last.value)
    names |= {"__name__": "__main__"}
    exec(compile(ast.fix_missing_locations(tree), "seed", "exec"), names)
    return names


def test_working_with_llms():
    made = run("""
from llms import OpenAILLM

llm = OpenAILLM(model="gpt-4")
llm.load()

llm.generate(
    inputs=[
        [
            {"role": "user", "content": "What's the capital of Spain?"},
        ],
    ],
)
""")
    assert made["_"][0][0] == "The capital of Spain is Madrid."


def test_within_a_task():
    made = run("""
from llms import OpenAILLM
from tasks import TextGeneration


llm = OpenAILLM(model="gpt-4")
task = TextGeneration(name="text_generation", llm=llm)

task.load()

next(task.process(inputs=[{"instruction": "What's the capital of Spain?"}]))
""")
    [row] = made["_"]
    assert row["instruction"] == "What's the capital of Spain?"
    assert row["generation"] == "The capital of Spain is Madrid."


PIPELINE = """
from flows import Pipeline
from llms import OpenAILLM
from tasks import LoadDataFromDicts
from tasks import TextGeneration


with Pipeline(name="text-generation-pipeline") as pipeline:
    load_dataset = LoadDataFromDicts(
        name="load_dataset",
        data=[
            {
                "instruction": "Write a short story about a dragon that saves a princess from a tower.",
            },
        ],
    )

    text_generation = TextGeneration(
        name="text_generation",
        llm=OpenAILLM(model="gpt-4"),
    )

    load_dataset >> text_generation

if __name__ == "__main__":
    pipeline.run(
        parameters={
            text_generation.name: {"llm": {"generation_kwargs": {"temperature": 0.3}}},
        },
    )
"""


def test_runtime_parameters(wire, monkeypatch):
    run(PIPELINE)
    monkeypatch.setenv("OPENAI_BASE_URL", wire.url)
    run(PIPELINE)
    assert wire.requests[0].body["temperature"] == 0.3


def test_the_dragon_saves_the_princess(openai_server):
    pipeline = run(PIPELINE.split("if __name__")[0])["pipeline"]
    story = pipeline.run()["default"]["train"][0]["generation"]
    assert "dragon" in story and story.count(".") > 3


def test_openai_json(wire, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", wire.url)
    snippet = """
from llms import OpenAILLM
llm = OpenAILLM(model="gpt4-turbo", api_key="api.key")
llm.generate(..., response_format="json")
"""
    run(snippet.replace("...", '[[{"role": "user", "content": "A user profile in JSON."}]]'))
    assert wire.requests[0].body["response_format"] == {"type": "json_object"}
    assert wire.requests[0].headers["authorization"] == "Bearer api.key"


def test_openai_json_in_a_pipeline(wire, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", wire.url)
    declared = PIPELINE.split("if __name__")[0].replace('name="text_generation"', 'name="task_with_openai"')
    run(
        """
# Assuming a pipeline is already defined, and we have a task using OpenAILLM called `task_with_openai`:
pipeline.run(
    parameters={
        "task_with_openai": {
            "llm": {
                "generation_kwargs": {
                    "response_format": "json"
                }
            }
        }
    }
)
""",
        pipeline=run(declared)["pipeline"],
    )
    assert wire.requests[0].body["response_format"] == {"type": "json_object"}


def test_openai_json_is_an_object(openai_server):
    made = run("""
import json

from llms import OpenAILLM

llm = OpenAILLM(model="gpt-4")
result = llm.generate([[{"role": "user", "content": "Create a user profile in JSON."}]], response_format="json")
json.loads(result[0][0])
""")
    assert isinstance(made["_"], dict)


CUSTOM = """
from typing import Any, List

from pydantic import validate_call

from llms import AsyncLLM, LLM
from llms.typing import GenerateOutput, HiddenState
from tasks.typing import ChatType


class CustomLLM(LLM):
    @property
    def model_name(self) -> str:
        return "my-model"

    @validate_call
    def generate(self, inputs: List[ChatType], num_generations: int = 1, **kwargs: Any) -> List[GenerateOutput]:
        for _ in range(num_generations):
            ...

    def get_last_hidden_state(self, inputs: List[ChatType]) -> List[HiddenState]:
        ...


class CustomAsyncLLM(AsyncLLM):
    @property
    def model_name(self) -> str:
        return "my-model"

    @validate_call
    async def agenerate(self, input: ChatType, num_generations: int = 1, **kwargs: Any) -> GenerateOutput:
        for _ in range(num_generations):
            ...

    def get_last_hidden_state(self, inputs: List[ChatType]) -> List[HiddenState]:
        ...
"""


def test_defining_custom_llms():
    made = run(CUSTOM)
    for name in ("CustomLLM", "CustomAsyncLLM"):
        llm = made[name]()
        llm.load()
        assert llm.model_name == "my-model" and llm.get_last_hidden_state([]) is None


def test_custom_llms_with_something_to_say():
    """Their keyword arguments are runtime parameters: coerced from strings, in a task and in a pipeline."""
    body = "for _ in range(num_generations):\n            ..."
    spoken = CUSTOM.replace(
        "num_generations: int = 1, **kwargs", "num_generations: int = 1, shout: bool = False, **kwargs"
    )
    spoken = spoken.replace(body, "return [[str(shout)] * num_generations for _ in inputs]", 1)
    spoken = spoken.replace(body, "return [str(shout)] * num_generations", 1)
    made = run(spoken)
    declared = PIPELINE.split("if __name__")[0].replace('OpenAILLM(model="gpt-4")', "Custom()")
    declared = declared.replace("from llms import OpenAILLM\n", "")
    for name in ("CustomLLM", "CustomAsyncLLM"):
        pipeline = run(declared, Custom=made[name])["pipeline"]
        shouted = {"text_generation": {"llm": {"generation_kwargs": {"shout": "true"}}}}
        assert pipeline.run()["default"]["train"]["generation"] == ["False"]
        assert pipeline.run(parameters=shouted)["default"]["train"]["generation"] == ["True"]


def test_the_type_of_structured_output():
    """The footnote's import; and what the type says of a schema."""
    from pydantic import BaseModel

    from llms import OpenAILLM

    class User(BaseModel):
        name: str
        last_name: str
        id: int

    held = OpenAILLM(model="m", structured_output={"format": "json", "schema": User}).structured_output
    assert held == StructuredOutputType(format="json", schema=User.model_json_schema())


def test_a_user_profile_is_held_to_its_schema(openai_server):
    """The structured generation of the document, by the server that has it today."""
    made = run("""
import json

from pydantic import BaseModel

from llms import OpenAILLM


class User(BaseModel):
    name: str
    last_name: str
    id: int


llm = OpenAILLM(model="gpt-4", structured_output={"format": "json", "schema": User})
llm.load()

result = llm.generate(
    [[{"role": "user", "content": "Create a user profile for the following marathon"}]],
    max_new_tokens=50
)

json.loads(result[0][0])
""")
    assert made["User"].model_validate(made["_"])
    assert json.dumps(made["_"]) and re.match(r"[A-Z]", made["_"]["name"])
