"""The tracking server of `deploy/`."""

import requests
from tests.deploy.servers import TrackingServer


def test_a_request_without_credentials_is_refused(tracking_server: TrackingServer) -> None:
    address = f"{tracking_server.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert requests.get(address, timeout=10).status_code == 401
    assert requests.get(address, timeout=10, auth=("admin", "wrong")).status_code == 401
    assert requests.get(address, timeout=10, auth=("admin", tracking_server.password)).status_code == 200
