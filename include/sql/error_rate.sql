-- Which deployments fail, how, and what did failures with unknown cost come to at most?
-- SQLite and PostgreSQL. Change the first day in both places. Reused answers are no attempts and left out.
SELECT
    failed.deployment,
    failed.error_type,
    COUNT(*) AS failed_attempts,
    ROUND(100.0 * COUNT(*) / attempts.total, 2) AS percent_of_attempts,
    SUM(failed.cost_nano) / 1000000000.0 AS unknown_cost_usd
FROM llm_requests AS failed
JOIN (
    SELECT deployment, COUNT(*) AS total
    FROM llm_requests
    WHERE status <> 'reused' AND created_at >= '2025-01-01'
    GROUP BY deployment
) AS attempts ON attempts.deployment = failed.deployment
WHERE failed.status IN ('error', 'unknown') AND failed.created_at >= '2025-01-01'
GROUP BY failed.deployment, failed.error_type, attempts.total
ORDER BY failed_attempts DESC;
