-- A selling platform's database before the migrations: one schema per tenant, in every shape seen in the field.
--
-- Each tenant's comment says what is particular about its vinted_job_stats. All but the template get 90 days of rows,
-- the same ones whenever this runs on the same day. Needs a superuser, and a database where none of this exists yet;
-- roles belong to the whole server and may be there already:
--
--     psql -v ON_ERROR_STOP=1 --single-transaction -f dev/legacy.sql

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'legacy_owner') THEN
        CREATE ROLE legacy_owner LOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'legacy_reader') THEN
        CREATE ROLE legacy_reader LOGIN;
    END IF;
END
$$;


---- What all tenants share ----

CREATE SCHEMA vinted;

CREATE TABLE vinted.action_types (
    id integer PRIMARY KEY,
    name text NOT NULL UNIQUE
);

INSERT INTO vinted.action_types (id, name)
VALUES
    (1, 'like'),
    (2, 'follow'),
    (3, 'message'),
    (4, 'relist');


---- The original, from which tenants are cloned. The template itself stays empty ----

CREATE SCHEMA template_tenant;

CREATE TABLE template_tenant.vinted_job_stats (
    id serial PRIMARY KEY,
    action_type_id integer NOT NULL,
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_vinted_job_stats_action_date UNIQUE (action_type_id, date),
    CONSTRAINT fk_vinted_job_stats_action_type_id FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)
);


---- Clones: most tenants. Default names, no foreign key, and the template's sequence ----

CREATE SCHEMA user_1;
CREATE TABLE user_1.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);

CREATE SCHEMA user_2;
CREATE TABLE user_2.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);

CREATE SCHEMA user_3;
CREATE TABLE user_3.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);


---- The old unique key, under other names ----

-- As the template, from the days before cloning.
CREATE SCHEMA user_named_key;
CREATE TABLE user_named_key.vinted_job_stats (
    id serial PRIMARY KEY,
    action_type_id integer NOT NULL,
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_vinted_job_stats_action_date UNIQUE (action_type_id, date),
    CONSTRAINT fk_vinted_job_stats_action_type_id FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)
);

-- Unnamed: PostgreSQL calls the keys vinted_job_stats_action_type_id_date_key and vinted_job_stats_action_type_id_fkey.
CREATE SCHEMA user_default_key;
CREATE TABLE user_default_key.vinted_job_stats (
    id serial PRIMARY KEY,
    action_type_id integer NOT NULL REFERENCES vinted.action_types (id),
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (action_type_id, date)
);

-- Named after the schema.
CREATE SCHEMA user_schema_key;
CREATE TABLE user_schema_key.vinted_job_stats (
    id serial PRIMARY KEY,
    action_type_id integer NOT NULL,
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_user_schema_key_job_stats_action_date UNIQUE (action_type_id, date)
);

-- A unique index, and no constraint that goes with it.
CREATE SCHEMA user_index_key;
CREATE TABLE user_index_key.vinted_job_stats (
    id serial PRIMARY KEY,
    action_type_id integer NOT NULL,
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX vinted_job_stats_by_action_and_date ON user_index_key.vinted_job_stats (action_type_id, date);


---- Foreign keys, identity ----

-- The foreign key to Vinted's action types cascades, and stands next to one that is the tenant's own business.
CREATE SCHEMA user_foreign_keys;
CREATE TABLE user_foreign_keys.workers (
    id integer PRIMARY KEY
);
CREATE TABLE user_foreign_keys.vinted_job_stats (
    id serial PRIMARY KEY,
    action_type_id integer NOT NULL,
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    worker_id integer,
    CONSTRAINT uq_vinted_job_stats_action_date UNIQUE (action_type_id, date),
    CONSTRAINT fk_vinted_job_stats_action_type_id FOREIGN KEY (action_type_id) REFERENCES vinted.action_types (id)
        ON DELETE CASCADE,
    CONSTRAINT fk_vinted_job_stats_worker_id FOREIGN KEY (worker_id) REFERENCES user_foreign_keys.workers (id)
);

-- Identity instead of serial.
CREATE SCHEMA user_identity;
CREATE TABLE user_identity.vinted_job_stats (
    id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    action_type_id integer NOT NULL,
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_vinted_job_stats_action_date UNIQUE (action_type_id, date)
);


---- Clones with additions of their own ----

-- More columns: a nullable one, one with a default, a generated one, and a gap where one was dropped.
CREATE SCHEMA user_extra_columns;
CREATE TABLE user_extra_columns.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
ALTER TABLE user_extra_columns.vinted_job_stats
    ADD COLUMN note text,
    ADD COLUMN regretted text,
    ADD COLUMN retries integer NOT NULL DEFAULT 0,
    ADD COLUMN success_percent numeric GENERATED ALWAYS AS (100.0 * success_count / nullif(total_jobs, 0)) STORED;
ALTER TABLE user_extra_columns.vinted_job_stats DROP COLUMN regretted;

-- More indexes: a plain one, a partial one, one on an expression, a unique one on other columns.
CREATE SCHEMA user_extra_indexes;
CREATE TABLE user_extra_indexes.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
CREATE INDEX ix_vinted_job_stats_date ON user_extra_indexes.vinted_job_stats (date);
CREATE INDEX ix_vinted_job_stats_failures ON user_extra_indexes.vinted_job_stats (date) WHERE failure_count > 0;
CREATE INDEX ix_vinted_job_stats_rate ON user_extra_indexes.vinted_job_stats ((success_count - failure_count));
CREATE UNIQUE INDEX uq_vinted_job_stats_date_id ON user_extra_indexes.vinted_job_stats (date, id);

-- Check constraints.
CREATE SCHEMA user_checks;
CREATE TABLE user_checks.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
ALTER TABLE user_checks.vinted_job_stats
    ADD CONSTRAINT ck_vinted_job_stats_total CHECK (total_jobs = success_count + failure_count),
    ADD CONSTRAINT ck_vinted_job_stats_avg CHECK (avg_duration_ms >= 0);

-- Comments on the table, a column, the old key and its index.
CREATE SCHEMA user_comments;
CREATE TABLE user_comments.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
COMMENT ON TABLE user_comments.vinted_job_stats IS 'Daily counters. Ask the growth team.';
COMMENT ON COLUMN user_comments.vinted_job_stats.avg_duration_ms IS 'NULL: no job was timed';
COMMENT ON CONSTRAINT vinted_job_stats_action_type_id_date_key ON user_comments.vinted_job_stats IS 'one row a day';
COMMENT ON INDEX user_comments.vinted_job_stats_action_type_id_date_key IS 'used by the dashboard';

-- A trigger.
CREATE SCHEMA user_trigger;
CREATE TABLE user_trigger.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
CREATE FUNCTION user_trigger.refuse_negative_counts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.success_count < 0 OR NEW.failure_count < 0 THEN
        RAISE check_violation USING MESSAGE = 'counts must not be negative';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER refuse_negative_counts
    BEFORE INSERT OR UPDATE ON user_trigger.vinted_job_stats
    FOR EACH ROW EXECUTE FUNCTION user_trigger.refuse_negative_counts();


---- Who may do what ----

-- Granted to another role: the table, one column, the sequence.
CREATE SCHEMA user_grants;
CREATE TABLE user_grants.vinted_job_stats (
    id serial PRIMARY KEY,
    action_type_id integer NOT NULL,
    date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0,
    success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0,
    avg_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_vinted_job_stats_action_date UNIQUE (action_type_id, date)
);
GRANT USAGE ON SCHEMA user_grants TO legacy_reader;
GRANT SELECT, INSERT ON user_grants.vinted_job_stats TO legacy_reader;
GRANT UPDATE (total_jobs) ON user_grants.vinted_job_stats TO legacy_reader;
GRANT USAGE ON SEQUENCE user_grants.vinted_job_stats_id_seq TO legacy_reader;

-- Owned by another role.
CREATE SCHEMA user_owner AUTHORIZATION legacy_owner;
CREATE TABLE user_owner.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
ALTER TABLE user_owner.vinted_job_stats OWNER TO legacy_owner;

-- Row-level security: the reader sees the last 30 days.
CREATE SCHEMA user_row_security;
CREATE TABLE user_row_security.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);
ALTER TABLE user_row_security.vinted_job_stats ENABLE ROW LEVEL SECURITY;
CREATE POLICY last_30_days ON user_row_security.vinted_job_stats
    FOR SELECT TO legacy_reader
    USING (date > current_date - 30);
GRANT USAGE ON SCHEMA user_row_security TO legacy_reader;
GRANT SELECT ON user_row_security.vinted_job_stats TO legacy_reader;


---- Names that need quoting ----

CREATE SCHEMA "user_a""b";
CREATE TABLE "user_a""b".vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);

CREATE SCHEMA "user_Ü 1";
CREATE TABLE "user_Ü 1".vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);


---- Not tenants of ours: a tenant's schema without the table, and neighbours that only look like tenants ----

CREATE SCHEMA user_without_table;
CREATE TABLE user_without_table.orders (
    id integer PRIMARY KEY
);

CREATE SCHEMA users;
CREATE TABLE users.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);

CREATE SCHEMA userland;
CREATE TABLE userland.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);

CREATE SCHEMA other_app;
CREATE TABLE other_app.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL);


---- 90 days of rows, ending today (UTC), for every vinted_job_stats but the template's ----

DO $$
DECLARE
    stats regclass;
    tenant integer := 0;
BEGIN
    FOR stats IN
        SELECT oid
        FROM pg_catalog.pg_class
        WHERE relname = 'vinted_job_stats' AND oid <> 'template_tenant.vinted_job_stats'::regclass
        ORDER BY oid::regclass::text
    LOOP
        -- Tenants, days and action types differ by "salt"; a day without jobs has no row; some jobs were not timed.
        tenant := tenant + 1;
        EXECUTE format(
            $rows$
            INSERT INTO %1$s
                (action_type_id, date, total_jobs, success_count, failure_count, avg_duration_ms, created_at)
            SELECT
                action_types.id,
                days.day,
                counts.success + counts.failure,
                counts.success,
                counts.failure,
                CASE WHEN salt %% 5 > 0 THEN 300 * action_types.id + salt %% 900 END,
                days.day::timestamp AT TIME ZONE 'UTC'
            FROM
                vinted.action_types,
                (SELECT (now() AT TIME ZONE 'UTC')::date - ago AS day, ago FROM generate_series(0, 89) AS ago) AS days,
                LATERAL (SELECT (7 * %2$s + 31 * days.ago + 17 * action_types.id) AS salt) AS salts,
                LATERAL (SELECT salt %% 37 AS success, salt %% 4 AS failure) AS counts
            WHERE counts.success + counts.failure > 0
            ORDER BY days.day, action_types.id
            $rows$,
            stats, tenant
        );
    END LOOP;
END
$$;
