"""The demo model: two million parameters trained on text we made up, to try the product with and nothing else.

It names capitals, adds small numbers, tells little stories, fills JSON profiles, and answers a handful of other kinds
of question (`corpus.py` holds them all). To everything else it says that it does not know, or talks nonsense. It needs
no key, GPU or download, which makes it a good first model to run a flow with; never use what it writes as data.
"""

from pathlib import Path

NAME = "demo-2m"

GGUF = Path(__file__).with_name("demo.gguf")
"""The weights in eight bits, for llama.cpp."""

CHECKPOINT = Path(__file__).with_name("checkpoint")
"""The weights in sixteen bits, in the form Transformers and vLLM load."""
