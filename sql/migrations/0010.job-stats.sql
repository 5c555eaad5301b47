-- The schema job_stats: what is not for any table, but for the job statistics. 0011 to 0018 hold its routines.
--
-- Touches no tenant. Undone by the rollback file.
--
-- depends: 0009.deviations

SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL citus.enable_ddl_propagation = off; -- noqa: PRS

CREATE SCHEMA job_stats;

-- The archives that fold_marketplaces() made: what else has their name is not believed. State, as tenancy.undo is.
CREATE TABLE job_stats.archives (archive regclass NOT NULL);
CREATE INDEX ix_archives_archive ON job_stats.archives (archive);
ALTER TABLE job_stats.archives REPLICA IDENTITY FULL; -- or, if it is published, it could not be changed

CALL tenancy.make_private('job_stats');
