-- What will each open budget have spent at the end of its period, if it goes on as it did so far?
-- PostgreSQL. Days, weeks and months; a run and a total have no end. Early in a period the figure says little.
SELECT
    name,
    period_start,
    limit_usd,
    spent,
    ROUND(100.0 * passed, 1) AS passed_percent,
    ROUND(spent / passed, 4) AS forecast_usd,
    ROUND(100.0 * spent / passed / NULLIF(limit_usd, 0), 1) AS forecast_percent
FROM (
    SELECT
        name,
        period_start,
        limit_usd,
        spent,
        EXTRACT(EPOCH FROM NOW() - starts_at) / EXTRACT(EPOCH FROM ends_at - starts_at) AS passed
    FROM llm_budgets
    WHERE starts_at < NOW() AND ends_at > NOW()
) AS running
ORDER BY forecast_percent DESC;
