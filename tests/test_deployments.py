"""Every deployment names a flow that exists, parameters it accepts and a pool there is."""

from pathlib import Path

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = [
    pytest.param(deployment, id=f"{path.stem}/{deployment['name']}")
    for path in sorted((ROOT / "deployments").glob("*.yaml"))
    for deployment in yaml.safe_load(path.read_text())["deployments"]
]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_deployment(deployment, monkeypatch):
    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    flow.validate_parameters(deployment.get("parameters", {}))
    assert deployment["work_pool"]["name"] in {"api", "gpu"}
