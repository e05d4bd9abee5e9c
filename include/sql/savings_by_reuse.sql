-- What has the response store saved, by DAG and model, and which share of the bill without it is that?
-- SQLite and PostgreSQL. Change the first day.
SELECT
    dag_id,
    model,
    SUM(reused) AS reused_answers,
    SUM(saved_nano) / 1000000000.0 AS saved_usd,
    SUM(cost_nano) / 1000000000.0 AS cost_usd,
    ROUND(100.0 * SUM(saved_nano) / NULLIF(SUM(saved_nano) + SUM(cost_nano), 0), 1) AS saved_percent
FROM llm_cost_daily
WHERE day >= '2025-01-01'
GROUP BY dag_id, model
ORDER BY saved_usd DESC;
