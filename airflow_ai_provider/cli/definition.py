"""``airflow ai …``: names and arguments only.

Every ``airflow`` call imports this module, so the commands themselves are imported when they run.
"""

from __future__ import annotations

from airflow.cli.cli_config import CLICommand, GroupCommand

from airflow_ai_provider.cli.define_audit import AUDIT
from airflow_ai_provider.cli.define_keys import KEYS, POLICY
from airflow_ai_provider.cli.define_money import BUDGETS, COST, DEPLOYMENTS, LEDGER, PLAN
from airflow_ai_provider.cli.define_reuse import REUSE
from airflow_ai_provider.cli.define_reviews import REVIEW


def get_cli_commands() -> list[CLICommand]:
    """The commands that the provider's metadata points to."""
    groups = (
        GroupCommand(name="budgets", help="Limits of what may be spent", subcommands=BUDGETS),
        GroupCommand(name="deployments", help="Deployments that are stopped", subcommands=DEPLOYMENTS),
        GroupCommand(name="ledger", help="The ledger of calls and budgets", subcommands=LEDGER),
        GroupCommand(name="review", help="Answers that wait for a person", subcommands=REVIEW),
        GroupCommand(name="policy", help="The policy file", subcommands=POLICY),
        GroupCommand(name="reuse", help="The response store", subcommands=REUSE),
        GroupCommand(name="keys", help="The keys of masking, encryption and stored answers", subcommands=KEYS),
        GroupCommand(name="audit", help="The audit trail", subcommands=AUDIT),
    )
    return [
        GroupCommand(
            name="ai",
            help="Cost, budgets, reviews, policy, keys, reuse and audit of LLM calls",
            subcommands=(COST, PLAN, *groups),
        )
    ]
