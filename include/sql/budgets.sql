-- How much of each budget is spent, held for calls under way, and left?
-- SQLite and PostgreSQL. Held amounts are upper bounds; what a call does not use comes back when it is answered.
SELECT
    name,
    period_start,
    limit_usd,
    spent,
    held,
    limit_usd - spent - held AS left_usd,
    ROUND(100.0 * spent_nano / NULLIF(limit_nano, 0), 1) AS spent_percent
FROM llm_budgets
ORDER BY name, period_start DESC;
