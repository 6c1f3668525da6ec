# ruff: noqa: E402
"""Steps as Prefect tasks: rows in, rows out."""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect, Hugging Face and vLLM would send what is used

from tasks.base import GeneratorStep, GlobalStep, Step
from tasks.columns.combine_outputs import CombineOutputs
from tasks.columns.expand_columns import ExpandColumns
from tasks.columns.group_columns import GroupColumns
from tasks.columns.keep_columns import KeepColumns
from tasks.columns.merge_columns import MergeColumns
from tasks.decorators import step, task
from tasks.embedding.generate_embeddings import GenerateEmbeddings
from tasks.feedback.ultra_feedback import UltraFeedback
from tasks.filtering.filter import Filter
from tasks.formatting.format_chat_generation_dpo import FormatChatGenerationDPO
from tasks.formatting.format_chat_generation_sft import FormatChatGenerationSFT
from tasks.formatting.format_text_generation_dpo import FormatTextGenerationDPO
from tasks.formatting.format_text_generation_sft import FormatTextGenerationSFT
from tasks.generation.chat_generation import ChatGeneration
from tasks.generation.structured_generation import StructuredGeneration
from tasks.generation.text_generation import TextGeneration
from tasks.join import Join
from tasks.routing import route, sample_n_steps
from tasks.sources.load_data_from_dicts import LoadDataFromDicts
from tasks.sources.load_data_from_files import LoadDataFromFiles
from tasks.sources.load_data_from_hub import LoadDataFromHub
from tasks.sources.source import Source, load_data
from tasks.task import Task

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
    "load_data",
    "route",
    "sample_n_steps",
    "step",
    "task",
]
