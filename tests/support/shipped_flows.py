"""The flows that ship, found rather than listed."""

import pkgutil
from importlib import import_module

from prefect import Flow

import flows

SHIPPED_FLOWS = [
    flow
    for module in pkgutil.iter_modules(flows.__path__, "flows.")
    if isinstance(flow := getattr(import_module(module.name), module.name.rpartition(".")[2], None), Flow)
]
