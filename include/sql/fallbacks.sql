-- Which deployments were passed over, why, who took their calls, and at what cost?
-- SQLite and PostgreSQL. Change the first day. A call may be several attempts: each counts.
SELECT
    fallback_from AS passed_over,
    fallback_reason AS reason,
    deployment AS taken_by,
    COUNT(*) AS attempts,
    SUM(CASE WHEN status = 'ok' THEN 1 ELSE 0 END) AS answered,
    SUM(cost_usd) AS cost_usd
FROM llm_requests
WHERE fallback_from IS NOT NULL AND created_at >= '2025-01-01'
GROUP BY fallback_from, fallback_reason, deployment
ORDER BY attempts DESC;
