-- What have invoices changed, by day, team and model, and is what the ledger had said an upper bound?
-- SQLite and PostgreSQL. Change the first day. A positive amount was charged above what the ledger had.
SELECT
    day,
    team_id,
    model,
    (cost_nano - adjusted_nano) / 1000000000.0 AS said_usd,
    adjusted_nano / 1000000000.0 AS adjusted_usd,
    cost_usd
FROM llm_cost_daily
WHERE adjusted_nano <> 0 AND day >= '2025-01-01'
ORDER BY day, team_id, model;
