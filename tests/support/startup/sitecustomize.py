"""Run by every process that tests start: it looks for garbage less often, and tells on SIGUSR1 where it stands."""

import faulthandler
import gc
import runpy
import signal
import sys
from pathlib import Path

gc.set_threshold(100_000)  # looking for garbage while a server imports takes a third of its start
faulthandler.register(signal.SIGUSR1)
if sys.orig_argv[1:3] == ["-m", "uvicorn"]:  # the server of Prefect's test harness
    runpy.run_path(str(Path(__file__).parents[3] / "flows/runtime/garbage.py"))["collect_in_a_thread"]()
