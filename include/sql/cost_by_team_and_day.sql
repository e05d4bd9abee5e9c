-- What does each team spend per day, what has reuse saved it, and how much of its work was reused?
-- SQLite and PostgreSQL. One row is one team on one UTC day. Change the first day.
SELECT
    day,
    team_id,
    requests,
    cost_usd,
    saved_usd,
    ROUND(100.0 * reuse_rate, 1) AS reused_percent
FROM team_daily_cost
WHERE day >= '2025-01-01'
ORDER BY day DESC, cost_usd DESC;
