"""LLM and embedding calls in Apache Airflow as governed batch work."""

__version__ = "0.1.0"
