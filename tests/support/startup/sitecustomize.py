"""Run by every process that tests start: looking for garbage while a server imports takes a third of its start."""

import gc

gc.set_threshold(100_000)
