-- The sums of every tenant, by the function of 0017, which says which tenants it can read.
SELECT
    marketplace::pg_catalog.text AS marketplace,
    tenants::bigint AS tenants,
    total_jobs::bigint AS total_jobs,
    success_count::bigint AS success_count,
    failure_count::bigint AS failure_count,
    avg_duration_ms::bigint AS avg_duration_ms,
    tenants_skipped::bigint AS tenants_skipped
FROM job_stats.platform_summary(%(days)s::integer, %(until)s::pg_catalog.date)
