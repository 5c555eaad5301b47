-- Verifies every tenant: yoyo runs this after it has applied something, and psql -f at any time. Changes nothing, and
-- fails if a tenant is not what the applied migrations make of it.
--
-- transactional: false

SET statement_timeout = 0;

CALL job_stats.verify();

RESET statement_timeout;
