"""Attempts to change the archive that the store's versions made harmless. They are findings all the same."""

from __future__ import annotations

from airflow_ai_provider.audit.archive import MANIFESTS, SEGMENTS, Archive
from airflow_ai_provider.audit.findings import VerifyReport
from airflow_ai_provider.errors import StoreUnavailable


def check_overlays(archive: Archive, report: VerifyReport) -> None:
    """Find what was laid over objects after they were written. What ``verify`` read is the first version."""
    try:
        for overlay in (each for prefix in (MANIFESTS, SEGMENTS) for each in archive.overlays(prefix)):
            what = f"{overlay.versions} later versions, {overlay.markers} delete markers; the first version was read"
            report.find("object_overlaid", overlay.name, what, "tried to overwrite or delete")
    except StoreUnavailable as error:
        report.error = report.error or str(error)
