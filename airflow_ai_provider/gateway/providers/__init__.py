"""Wire adapters: one small protocol, one adapter per way to reach a model."""

from __future__ import annotations

from airflow_ai_provider.errors import PolicyError
from airflow_ai_provider.gateway.providers.base import Provider
from airflow_ai_provider.gateway.settings import Settings
from airflow_ai_provider.policy import Deployment


def open_provider(name: str, deployment: Deployment, settings: Settings) -> Provider:
    """The adapter of a deployment. Raises ``PolicyError`` where its connection cannot be resolved."""
    if deployment.provider == "offline":
        from airflow_ai_provider.gateway.providers.offline import ExtractiveProvider

        if deployment.model != "offline/extractive":
            raise PolicyError(f"deployments.{name}: no offline model {deployment.model!r}; there is offline/extractive")
        return ExtractiveProvider()
    from airflow_ai_provider.gateway.providers.litellm import LitellmProvider
    from airflow_ai_provider.gateway.settings import Endpoint

    endpoint = Endpoint()
    if deployment.connection is not None:
        try:
            endpoint = settings.endpoint(deployment.connection)
        except LookupError as error:
            raise PolicyError(f"deployments.{name}: {error}") from None
    return LitellmProvider(name, deployment, endpoint)
