-- On the publisher: ends when every subscriber of this database has all that was written before. Changes nothing.
--
--     PGSERVICE=publisher psql -v ON_ERROR_STOP=1 -f docs/wait-for-subscriber.sql

SET search_path = pg_catalog, pg_temp;

DO $$
DECLARE
    written constant pg_lsn := pg_current_wal_insert_lsn();
BEGIN
    WHILE EXISTS (
        SELECT FROM pg_replication_slots
        WHERE slot_type = 'logical' AND database = current_database() AND confirmed_flush_lsn < written
    ) LOOP
        PERFORM pg_sleep(0.1);
    END LOOP;
END
$$;
