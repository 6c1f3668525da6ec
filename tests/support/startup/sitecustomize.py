"""Run by every process that tests start: looking for garbage while a server imports takes a third of its start."""

import faulthandler
import gc
import signal

gc.set_threshold(100_000)
if hasattr(signal, "SIGUSR1"):
    faulthandler.register(signal.SIGUSR1)  # a process that hangs is asked where
