"""A source with columns it lacks: the same text in every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from airflow_ai_provider.rows.source import SelectableSource, Source


class DefaultedSource:
    """A source whose rows have further columns. A column that the source has itself stays as it is."""

    def __init__(self, source: Source, defaults: Mapping[str, str]) -> None:
        self._source = source
        self._defaults = {name: value for name, value in defaults.items() if name not in source.columns()}

    @property
    def uri(self) -> str:
        return self._source.uri

    def columns(self) -> tuple[str, ...]:
        return (*self._source.columns(), *self._defaults)

    def version(self) -> str | None:
        return self._source.version()

    def select(self, columns: Sequence[str]) -> Source:
        """Of the source itself no more columns than these; all defaults."""
        own = [name for name in columns if name not in self._defaults]
        if own and isinstance(self._source, SelectableSource):
            return DefaultedSource(self._source.select(own), self._defaults)
        return self

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        for batch in self._source.batches(size):
            arrays = [pa.array([value] * batch.num_rows, pa.string()) for value in self._defaults.values()]
            names = [*batch.schema.names, *self._defaults]
            yield pa.RecordBatch.from_arrays([*batch.columns, *arrays], names=names)
