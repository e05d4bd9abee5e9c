"""Delivers and seals until all has arrived, in a process: ``python -m support.audit_deliverer SETTINGS.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from airflow_ai_provider.core.administration.audit import seal_audit
from airflow_ai_provider.core.administration.audit_delivery import deliver_audit
from airflow_ai_provider.core.audit.sinks.search import SearchAddress
from airflow_ai_provider.core.audit.trail.spool import Spool
from airflow_ai_provider.core.settings import Settings
from airflow_ai_provider.errors import TransientError


def settings_of(place: dict[str, Any]) -> Settings:
    return Settings(
        home=Path(place["home"]),
        policy_path=Path(place["home"]) / "policy.yaml",
        archive_uri=place["archive_uri"],
        archive_lock=place["archive_lock"],
        archive_retention_days=1,
        storage_options=place["storage_options"],
        search=SearchAddress(place["search_url"]),
    )


def main() -> None:
    settings = settings_of(json.loads(Path(sys.argv[1]).read_text()))
    while True:
        report = deliver_audit(settings)
        try:
            sealed = seal_audit(settings)
        except TransientError:
            continue
        done = not any(each.error for each in report.sinks.values())
        if done and not Spool(settings.home / "audit" / "spool").names("sealed") and sealed.segments == 0:
            return


if __name__ == "__main__":
    main()
