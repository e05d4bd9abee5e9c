"""What Airflow reads about this package at every start: connections, configuration, operators, commands.

Airflow imports this module in every process, so it imports nothing. The connection form is complete here, without the
hook being imported.
"""

from __future__ import annotations

from typing import Any

_VERSION = "0.1.0"
_INTEGRATION = "AI gateway"


def _option(description: str, *, example: str | None = None, default: str | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": _VERSION,
        "type": "string",
        "example": example,
        "default": default,
    }


def _options() -> dict[str, Any]:
    return {
        "home": _option(
            "Folder of the embedded defaults: ledger.db, responses.db, audit/, vectors/ and keyring.json. "
            "Empty means the folder ``ai`` in AIRFLOW_HOME.\n",
            example="/opt/airflow/ai",
            default="",
        ),
        "policy_path": _option(
            "Path of policy.yaml: deployments, routes, budgets, masking. Empty means policy.yaml in ``[ai] home``.\n",
            example="/opt/airflow/include/policy.yaml",
            default="",
        ),
        "allow_dag_policy": _option(
            "Whether a task may name a policy file of its own (``policy=``). Such a file can only narrow the policy "
            "above: what it would loosen is refused before any call. Empty means False: the argument is refused.\n",
            example="True",
            default="",
        ),
        "ledger_conn_id": _option(
            "Connection (postgres or sqlite) of the ledger of calls and budgets. Empty means SQLite in ``[ai] home``; "
            "more than one worker host needs PostgreSQL.\n",
            example="ai_ledger",
            default="",
        ),
        "cache_conn_id": _option(
            "Connection (redis) of the response store. Empty means SQLite in ``[ai] home``.\n",
            example="ai_cache",
            default="",
        ),
        "archive_uri": _option(
            "Folder of the sealed audit trail, such as a mounted share, or ``s3://CONN_ID@bucket/prefix`` with a "
            "connection of type aws. Empty means audit/archive in ``[ai] home``.\n",
            example="s3://ai_archive@audit-trail/airflow-ai",
            default="",
        ),
        "archive_lock": _option(
            "Object Lock of an archive in S3: ``compliance`` (nobody can delete), ``governance`` (who holds "
            "s3:BypassGovernanceRetention can) or ``none``. It has no default: an archive in S3 must say it.\n",
            example="compliance",
            default="",
        ),
        "archive_retention_days": _option(
            "Days for which what is written to an archive in S3 stays locked. Empty means 2555, seven years.\n",
            example="3650",
            default="",
        ),
        "search_conn_id": _option(
            "Connection (elasticsearch) of the server that holds the index of the audit trail: Elasticsearch or "
            "OpenSearch. Empty means SQLite in ``[ai] home``.\n",
            example="ai_search",
            default="",
        ),
        "audit_signing_key": _option(
            "Who signs the audit trail's manifests: a folder that only the sealer can read, or ``kms://CONN_ID/KEY``, "
            "a signing key of AWS KMS by id, ARN or alias. Empty means audit/keys in ``[ai] home``.\n",
            example="kms://aws_default/alias/audit-sealer",
            default="",
        ),
        "audit_spool_limit_mb": _option(
            "Megabytes that may wait on a host for the audit archive; beyond it no call is made. "
            "Empty means 1024, about a million calls.\n",
            example="4096",
            default="",
        ),
        "audit_seal_within_minutes": _option(
            "Minutes that audit events may wait for a signed manifest before sealing counts as stopped: the sealer "
            "fails and a verification finds it. Empty means 60, six runs of the sealing DAG.\n",
            example="120",
            default="",
        ),
        "audit_outcomes": _option(
            "Whose outcomes (success, failed, skipped) the audit trail records: ``ours`` (tasks of this package's "
            "operators), ``dags`` (every task of a DAG that has one of them) or ``off``. Empty means ours.\n",
            example="dags",
            default="",
        ),
        "vectors_conn_id": _option(
            "Connection (generic or http) of a Milvus server; the password is its token. Empty means Milvus Lite in "
            "``[ai] home``.\n",
            example="ai_vectors",
            default="",
        ),
        "keyring_conn_id": _option(
            "Connection whose password (or extra) holds the keyring as JSON. Empty means keyring.json in "
            "``[ai] home``, readable by its owner only.\n",
            example="ai_keyring",
            default="",
        ),
    }


def _llm_connection() -> dict[str, Any]:
    return {
        "connection-type": "llm",
        "hook-class-name": "airflow_ai_provider.hooks.llm.LLMHook",
        "hook-name": "LLM",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port", "login"],
            "relabeling": {"host": "API base URL", "password": "API key"},
            "placeholders": {
                "host": "https://api.openai.com/v1 (empty: the vendor's own)",
                "password": "empty for servers that ask for none",
                "extra": '{"headers": {"X-Team": "support"}}',
            },
        },
        "conn-fields": {
            "organization": {
                "label": "Organisation",
                "description": "Organisation or project that the vendor bills, where it knows several.",
                "schema": {"type": ["string", "null"]},
            },
            "api_version": {
                "label": "API version",
                "description": "Version of the vendor's API, where it asks for one (Azure OpenAI: 2024-10-21).",
                "schema": {"type": ["string", "null"]},
            },
            "headers": {
                "label": "Headers",
                "description": "Further HTTP headers of every request, as a JSON object.",
                "schema": {"type": ["object", "null"]},
            },
        },
    }


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata, as ``airflow/provider_info.schema.json`` describes it."""
    return {
        "package-name": "airflow-ai-provider",
        "name": "AI",
        "description": "LLM and embedding calls as governed batch work: masked, routed, reused, budgeted, paced, "
        "accounted and audited.\n",
        "integrations": [
            {"integration-name": _INTEGRATION, "tags": ["software"]},
            {"integration-name": "Milvus", "external-doc-url": "https://milvus.io/", "tags": ["software"]},
        ],
        "operators": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_ai_provider.operators.llm",
                    "airflow_ai_provider.operators.rows",
                    "airflow_ai_provider.operators.audit",
                    "airflow_ai_provider.operators.budgets",
                    "airflow_ai_provider.operators.cost",
                    "airflow_ai_provider.operators.ledger",
                    "airflow_ai_provider.operators.privacy",
                ],
            },
            {"integration-name": "Milvus", "python-modules": ["airflow_ai_provider.operators.vectors"]},
        ],
        "sensors": [{"integration-name": _INTEGRATION, "python-modules": ["airflow_ai_provider.sensors.budget"]}],
        "triggers": [{"integration-name": _INTEGRATION, "python-modules": ["airflow_ai_provider.triggers.budget"]}],
        "hooks": [{"integration-name": _INTEGRATION, "python-modules": ["airflow_ai_provider.hooks.llm"]}],
        "connection-types": [_llm_connection()],
        "task-decorators": [
            {"name": "llm_map", "class-name": "airflow_ai_provider.decorators.llm_map.llm_map_task"},
            {"name": "mask_rows", "class-name": "airflow_ai_provider.decorators.privacy.mask_rows_task"},
            {"name": "restore_rows", "class-name": "airflow_ai_provider.decorators.privacy.restore_rows_task"},
            {"name": "encrypt_columns", "class-name": "airflow_ai_provider.decorators.privacy.encrypt_columns_task"},
            {"name": "decrypt_columns", "class-name": "airflow_ai_provider.decorators.privacy.decrypt_columns_task"},
        ],
        "config": {
            "ai": {
                "description": "Where the AI provider finds its parts. With nothing set, everything is embedded in one "
                "folder; each option moves one part to a real service.\n",
                "options": _options(),
            }
        },
        "cli": ["airflow_ai_provider.cli.definition.get_cli_commands"],
    }
