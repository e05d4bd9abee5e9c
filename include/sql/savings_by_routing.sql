-- What has routing saved, against sending every row to the highest tier of its route?
-- SQLite and PostgreSQL. Change the first day. Answered attempts only: the same tokens at the highest tier's price.
-- An answer of the highest tier itself saves nothing; one that escalated to it costs more than going there at once.
SELECT
    route,
    tier,
    COUNT(*) AS answers,
    SUM(baseline_nano) / 1000000000.0 AS baseline_usd,
    SUM(cost_nano) / 1000000000.0 AS cost_usd,
    (SUM(baseline_nano) - SUM(cost_nano)) / 1000000000.0 AS saved_usd,
    ROUND(100.0 * (SUM(baseline_nano) - SUM(cost_nano)) / SUM(baseline_nano), 1) AS saved_percent
FROM llm_requests
WHERE status = 'ok' AND baseline_nano > 0 AND created_at >= '2025-01-01'
GROUP BY route, tier
ORDER BY saved_usd DESC;
