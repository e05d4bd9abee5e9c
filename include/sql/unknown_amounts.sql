-- Which amounts are still unknown, and what do they come to at most?
-- SQLite and PostgreSQL. Attempts that the vendor may have charged and no invoice has resolved.
SELECT
    r.deployment,
    r.error_type,
    COUNT(*) AS attempts,
    MIN(r.created_at) AS oldest,
    SUM(r.cost_nano) / 1000000000.0 AS at_most_usd
FROM llm_requests AS r
WHERE r.status = 'unknown'
    AND r.created_at >= '2025-01-01'
    AND NOT EXISTS (SELECT 1 FROM llm_adjustments AS a WHERE a.attempt_id = r.attempt_id)
GROUP BY r.deployment, r.error_type
ORDER BY at_most_usd DESC;
