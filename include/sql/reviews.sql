-- How many answers wait for a person, since when, and what became of the others?
-- SQLite and PostgreSQL. Change the day from which on closed ones count. Those that were answered needed nobody.
SELECT
    team_id,
    dag_id,
    route,
    reason_kind,
    COUNT(*) AS items,
    SUM(CASE WHEN status = 'open' THEN 1 ELSE 0 END) AS waiting,
    SUM(CASE WHEN status = 'answered' THEN 1 ELSE 0 END) AS answered,
    SUM(CASE WHEN decision = 'accepted' THEN 1 ELSE 0 END) AS accepted,
    SUM(CASE WHEN decision = 'rejected' THEN 1 ELSE 0 END) AS rejected,
    SUM(CASE WHEN decision = 'corrected' THEN 1 ELSE 0 END) AS corrected,
    MIN(created_at) AS first_opened
FROM review_items
WHERE status = 'open' OR updated_at >= '2025-01-01'
GROUP BY team_id, dag_id, route, reason_kind
ORDER BY waiting DESC, items DESC;
