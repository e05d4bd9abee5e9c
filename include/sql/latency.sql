-- How long do answers take, by deployment and model: median, 95th and 99th percentile?
-- SQLite and PostgreSQL. Change the first day. Each figure is the time of an answer (nearest rank), not between two.
SELECT
    deployment,
    model,
    answers,
    MIN(CASE WHEN place * 100 >= answers * 50 THEN latency_ms END) AS p50_ms,
    MIN(CASE WHEN place * 100 >= answers * 95 THEN latency_ms END) AS p95_ms,
    MIN(CASE WHEN place * 100 >= answers * 99 THEN latency_ms END) AS p99_ms,
    MAX(latency_ms) AS slowest_ms
FROM (
    SELECT
        deployment,
        model,
        latency_ms,
        ROW_NUMBER() OVER (PARTITION BY deployment, model ORDER BY latency_ms) AS place,
        COUNT(*) OVER (PARTITION BY deployment, model) AS answers
    FROM llm_requests
    WHERE status = 'ok' AND latency_ms IS NOT NULL AND created_at >= '2025-01-01'
) AS ranked
GROUP BY deployment, model, answers
ORDER BY p95_ms DESC;
