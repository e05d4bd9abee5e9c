-- What was spent in each hour, and by which team?
-- PostgreSQL. Change the first moment; hours are UTC. Adjustments by invoices are counted.
SELECT
    DATE_TRUNC('hour', created_at AT TIME ZONE 'UTC') AS hour,
    team_id,
    COUNT(*) AS attempts,
    SUM(cost_nano) / 1000000000.0 AS cost_usd
FROM llm_request_costs
WHERE created_at >= '2025-01-31 00:00:00+00'
GROUP BY 1, 2
ORDER BY 1, 2;
