"""Steps as Prefect tasks: rows in, rows out."""

from tasks.base import GeneratorStep, GlobalStep, Step
from tasks.chat_generation import ChatGeneration
from tasks.combine_outputs import CombineOutputs
from tasks.decorators import step, task
from tasks.expand_columns import ExpandColumns
from tasks.filter import Filter
from tasks.format_chat_generation_dpo import FormatChatGenerationDPO
from tasks.format_chat_generation_sft import FormatChatGenerationSFT
from tasks.format_text_generation_dpo import FormatTextGenerationDPO
from tasks.format_text_generation_sft import FormatTextGenerationSFT
from tasks.generate_embeddings import GenerateEmbeddings
from tasks.group_columns import GroupColumns
from tasks.join import Join
from tasks.keep_columns import KeepColumns
from tasks.load_data_from_dicts import LoadDataFromDicts
from tasks.load_data_from_files import LoadDataFromFiles
from tasks.load_data_from_hub import LoadDataFromHub
from tasks.merge_columns import MergeColumns
from tasks.routing import route, sample_n_steps
from tasks.source import Source, load
from tasks.structured_generation import StructuredGeneration
from tasks.task import Task
from tasks.text_generation import TextGeneration
from tasks.ultra_feedback import UltraFeedback

__all__ = [
    "ChatGeneration",
    "CombineOutputs",
    "ExpandColumns",
    "Filter",
    "FormatChatGenerationDPO",
    "FormatChatGenerationSFT",
    "FormatTextGenerationDPO",
    "FormatTextGenerationSFT",
    "GenerateEmbeddings",
    "GeneratorStep",
    "GlobalStep",
    "GroupColumns",
    "Join",
    "KeepColumns",
    "LoadDataFromDicts",
    "LoadDataFromFiles",
    "LoadDataFromHub",
    "MergeColumns",
    "Source",
    "Step",
    "StructuredGeneration",
    "Task",
    "TextGeneration",
    "UltraFeedback",
    "load",
    "route",
    "sample_n_steps",
    "step",
    "task",
]
