"""A vendor's usage export as one kind of value, whatever the vendor and the file.

Five formats, told apart by their content. Files are read as a stream, money is ``Decimal`` from the digits in the
file, and one line that cannot be read stops the reading: a line left out could make a call look uncharged.
"""

from __future__ import annotations

from airflow_ai_provider.core.ledger.reconcile.invoices.line import FORMATS, Format, InvoiceLine
from airflow_ai_provider.core.ledger.reconcile.invoices.reader import Invoice, open_invoice

__all__ = ["FORMATS", "Format", "Invoice", "InvoiceLine", "open_invoice"]
