-- On the publisher: ends when every subscriber of this database has all that was written before. Changes nothing.
--
--     PGSERVICE=publisher psql -v ON_ERROR_STOP=1 -f docs/wait-for-subscriber.sql
DO $$
DECLARE
    written pg_catalog.pg_lsn := pg_catalog.pg_current_wal_insert_lsn();
BEGIN
    WHILE EXISTS (
        SELECT FROM pg_catalog.pg_replication_slots AS s
        WHERE s.slot_type = 'logical' AND s.database = pg_catalog.current_database() AND s.confirmed_flush_lsn < written
    ) LOOP
        PERFORM pg_catalog.pg_sleep(0.1);
    END LOOP;
END
$$;
