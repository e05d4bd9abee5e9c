"""Wire adapters: one small protocol, one adapter per way to reach a model. Each is imported when it is first used."""

from __future__ import annotations

from airflow_ai_provider.core.errors import PermanentError, PolicyError
from airflow_ai_provider.core.policy import Deployment
from airflow_ai_provider.core.providers.base import Provider
from airflow_ai_provider.core.providers.vendors import adapter_of, address_of, check_endpoint
from airflow_ai_provider.core.settings import Endpoint, Settings


def open_provider(name: str, deployment: Deployment, settings: Settings) -> Provider:
    """The adapter of a deployment. Raises ``PolicyError`` where it can never work."""
    if deployment.provider == "offline":
        from airflow_ai_provider.core.providers.offline import ExtractiveProvider

        _check_offline(name, deployment)
        return ExtractiveProvider()
    endpoint = _endpoint(name, deployment, settings)
    if adapter_of(deployment, endpoint) == "litellm":
        from airflow_ai_provider.core.providers.litellm import LitellmProvider

        return LitellmProvider(name, deployment, endpoint)
    from airflow_ai_provider.core.providers.openai_compatible import OpenAICompatibleProvider

    address = address_of(name, deployment, endpoint)
    return OpenAICompatibleProvider(name, address, concurrency=deployment.concurrency)


def check_deployment(name: str, deployment: Deployment, settings: Settings) -> None:
    """What can be known without a request and without importing an adapter. Raises ``PolicyError``."""
    if deployment.provider == "offline":
        return _check_offline(name, deployment)
    endpoint = _endpoint(name, deployment, settings)
    if adapter_of(deployment, endpoint) == "litellm":
        return check_endpoint(name, deployment, endpoint)
    address_of(name, deployment, endpoint)
    return None


def _check_offline(name: str, deployment: Deployment) -> None:
    if deployment.model != "offline/extractive":
        raise PolicyError(f"deployments.{name}: no offline model {deployment.model!r}; there is offline/extractive")
    if deployment.adapter is not None:
        raise PolicyError(f"deployments.{name}: adapter: the offline model has none; remove it")


def _endpoint(name: str, deployment: Deployment, settings: Settings) -> Endpoint:
    if deployment.connection is None:
        return Endpoint()
    try:
        return settings.endpoint(deployment.connection)
    except (LookupError, PermanentError) as error:
        raise PolicyError(f"deployments.{name}: {error.args[0] if error.args else error}") from None
