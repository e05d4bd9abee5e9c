-- What does each model cost, and what does a million of its tokens come to, input and output together?
-- SQLite and PostgreSQL. Unknown attempts cost and have no tokens, so they raise the price per million.
SELECT
    model,
    SUM(requests) - SUM(reused) AS attempts,
    SUM(input_tokens) AS input_tokens,
    SUM(cached_input_tokens) AS cached_input_tokens,
    SUM(output_tokens) AS output_tokens,
    SUM(cost_nano) / 1000000000.0 AS cost_usd,
    SUM(cost_nano) / 1000.0 / NULLIF(SUM(input_tokens) + SUM(output_tokens), 0) AS usd_per_million_tokens
FROM llm_cost_daily
WHERE day >= '2025-01-01'
GROUP BY model
ORDER BY cost_usd DESC;
