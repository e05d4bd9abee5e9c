"""``airflow ai keys`` and ``policy``: names and arguments."""

from __future__ import annotations

from airflow.cli.cli_config import ARG_OUTPUT, ARG_VERBOSE, ActionCommand

from airflow_ai_provider.cli.arguments import arg, count
from airflow_ai_provider.cli.calls import changes, reads

_ARG_POLICY = arg("--policy", metavar="PATH", help="Policy file to check (default: policy_path in section ai)")
_ARG_PINNED = arg("--policy", metavar="PATH", help="Policy file to pin (default: policy_path in section ai)")
_ARG_REASON = arg("--reason", required=True, metavar="TEXT", help="Why, for the audit trail")
_ARG_WHO = arg("--by", metavar="NAME", help="Who (default: the account this runs under)")
_ARG_OUT = arg("--out", metavar="FILE", help="New file for the keyring, where a connection holds it")
_ARG_KIND = arg("kind", choices=("keyring", "signing"), help="The keyring, or the key that signs the audit trail")
_ARG_SOURCE = arg("source", help="URI of rows with encrypted columns")
_ARG_SINK = arg("--sink", required=True, metavar="URI", help="Folder of the new parts; name it again to resume")
_ARG_TEAM = arg("--team", required=True, help="Team whose keys the columns are encrypted with")
_ARG_TABLE = arg("--table", default="", help="Table that the ciphertexts are bound to (default: that of masked rows)")
_ARG_KEY = arg("--key", required=True, metavar="COLUMN", help="Column that named the rows when they were encrypted")
_ARG_COLUMNS = arg("--columns", required=True, metavar="NAMES", help="Encrypted columns, comma-separated")
_ARG_BATCH_ROWS = arg("--batch-rows", type=count, default=1000, metavar="N", help="Rows per part (default: 1000)")

KEYS = (
    ActionCommand(
        name="list",
        help="Which keys there are and which one writes; never a secret",
        func=reads("keys.list_keys"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="generate",
        help="Make a keyring with one key",
        func=changes("keys.generate"),
        args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="rotate",
        help="Add a key that writes from now on; the others still read",
        func=changes("keys.rotate"),
        args=(_ARG_OUT, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="adopt",
        help="Make this host's keys those of all hosts on its ledger, where the registered ones are lost",
        func=changes("keys.adopt"),
        args=(_ARG_KIND, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="reencrypt",
        help="Move encrypted columns to the key that writes now; goes on where it was interrupted",
        description="Exit status: 0 good, 1 some rows could not be read, 2 could not run.",
        func=changes("keys.reencrypt"),
        args=(
            _ARG_SOURCE,
            _ARG_SINK,
            _ARG_TEAM,
            _ARG_TABLE,
            _ARG_KEY,
            _ARG_COLUMNS,
            _ARG_BATCH_ROWS,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    ),
)
POLICY = (
    ActionCommand(
        name="check",
        help="Check the policy file: form, prices, budgets, connections",
        description="Exit status: 0 good, 1 something is wrong with the policy, 2 could not run.",
        func=reads("commands.policy_check"),
        args=(_ARG_POLICY, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="pin",
        help="Pin the policy in the ledger: calls under a policy that is not pinned are refused",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("policy.pin"),
        args=(_ARG_PINNED, _ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="unpin",
        help="Take a pin back; after the last one every policy may make calls",
        description="Is written to the audit trail. Exit status: 0 good, 2 could not run.",
        func=changes("policy.unpin"),
        args=(arg("digest", help="Its digest, or how that begins"), _ARG_REASON, _ARG_WHO, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="pins",
        help="Which policies are pinned, by whom and why",
        description="Reads the ledger. Exit status: 0 good, 2 could not run.",
        func=reads("policy.list_pins"),
        args=(ARG_OUTPUT, ARG_VERBOSE),
    ),
)
