-- Which tasks cost the most, per request and in all?
-- SQLite and PostgreSQL. Change the first day; times are UTC. Adjustments by invoices are counted.
SELECT
    team_id,
    dag_id,
    task_id,
    COUNT(DISTINCT request_id) AS requests,
    COUNT(*) AS attempts,
    SUM(cost_nano) / 1000000000.0 AS cost_usd,
    SUM(cost_nano) / 1000000000.0 / COUNT(DISTINCT request_id) AS cost_per_request_usd
FROM llm_request_costs
WHERE created_at >= '2025-01-01'
GROUP BY team_id, dag_id, task_id
ORDER BY cost_usd DESC;
