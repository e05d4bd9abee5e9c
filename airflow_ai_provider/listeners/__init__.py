"""Listeners that Airflow calls on changes of task instances."""
