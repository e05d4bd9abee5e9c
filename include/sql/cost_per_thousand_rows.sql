-- What do a thousand rows of each task cost, retries, second tiers and reused rows included?
-- SQLite and PostgreSQL. Change the first day. A row that needed three attempts is one row.
SELECT
    dag_id,
    task_id,
    route,
    COUNT(DISTINCT request_id) AS request_rows,
    ROUND(1.0 * COUNT(*) / COUNT(DISTINCT request_id), 2) AS attempts_per_row,
    SUM(cost_nano) / 1000000.0 / COUNT(DISTINCT request_id) AS usd_per_thousand_rows
FROM llm_request_costs
WHERE created_at >= '2025-01-01'
GROUP BY dag_id, task_id, route
ORDER BY usd_per_thousand_rows DESC;
