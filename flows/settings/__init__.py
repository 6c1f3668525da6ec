"""Settings of a run and parameters of its steps."""

from flows.settings.run_settings import RunSettings, RunSettingsArgs
from flows.settings.step_parameters import StepParameters

__all__ = ["RunSettings", "RunSettingsArgs", "StepParameters"]
