"""Steps as Prefect tasks: rows in, rows out."""

from tasks.base import GeneratorStep, GlobalStep, Step, Task
from tasks.chat_generation import ChatGeneration
from tasks.load_data_from_dicts import LoadDataFromDicts
from tasks.load_data_from_files import LoadDataFromFiles
from tasks.load_data_from_hub import LoadDataFromHub
from tasks.source import Source, load
from tasks.text_generation import TextGeneration

__all__ = [
    "ChatGeneration",
    "GeneratorStep",
    "GlobalStep",
    "LoadDataFromDicts",
    "LoadDataFromFiles",
    "LoadDataFromHub",
    "Source",
    "Step",
    "Task",
    "TextGeneration",
    "load",
]
