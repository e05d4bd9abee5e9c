"""The logic of the package. Imports no Airflow, and can be used from a notebook."""
