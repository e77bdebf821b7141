#!/usr/bin/env bash
# Copy the local stack's database to production's, table by table as PostgreSQL dumps it, and count the rows at both ends.
# infra/compose/migrate.yml runs this, in PostgreSQL's image. It can be run again: it replaces what it brought before.
# It refuses where production has runs of its own, which that would lose.
set -euo pipefail

refuse() { # bad input: what is wrong and what to do
    echo "migrate-database: $*" >&2
    exit 2
}
here() { PGPASSWORD=$(cat /run/secrets/postgres_password) "$@" --host=postgres --username=ratchet --dbname=ratchet; }
there="host=$DATABASE_HOST port=$DATABASE_PORT user=$DATABASE_USER dbname=$DATABASE_NAME"
there="$there sslmode=verify-full sslrootcert=/run/database-ca.pem connect_timeout=10"
rows() { psql --no-psqlrc --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }

rows "$there" --command='SELECT 1' >/dev/null || refuse "the database at DATABASE_HOST=$DATABASE_HOST does not let" \
    "$DATABASE_USER in (above is why). Expected production's, with its user made: docker compose run --rm database-role"

others=$(rows "$there" --command='SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = current_user')
[ "$others" = 0 ] || refuse "$DATABASE_USER is connected to $DATABASE_NAME on $DATABASE_HOST: production is running." \
    "Stop it first (there: docker compose stop tracking), since its tables are replaced."

has() { [ "$(rows "$there" --command="SELECT to_regclass('public.$1') IS NOT NULL")" = t ]; }
foreign() { # table, what its rows are, their key: refuse where production has rows that are not here
    here rows --command="SELECT $3 FROM $1" | sort >/tmp/here
    rows "$there" --command="SELECT $3 FROM $1" | sort >/tmp/there
    local own
    own=$(comm -13 /tmp/here /tmp/there)
    [ -z "$own" ] || refuse "production has $(wc -l <<<"$own") $2 that are not here (one: ${own%%$'\n'*}), which a copy" \
        "would lose. Expected a new database, or one that this has filled and nobody has used since."
}
if has runs; then
    foreign runs runs run_uuid
    foreign trace_info traces request_id
    foreign model_versions 'model versions' "name || ' ' || version"
fi
# Rights name experiments by number, and the numbers will be those from here.
if has users; then
    people=$(rows "$there" --command="SELECT count(*) FROM users
        WHERE username NOT IN ('admin', 'trainer', 'promoter', 'serving')")
    [ "$people" = 0 ] || refuse "production has $people users besides its own: their rights would be on other" \
        "experiments afterwards. Expected a new database. Make them anew once production is up."
fi

echo "Copying $(here rows --command='SELECT pg_size_pretty(pg_database_size(current_database()))') to $DATABASE_HOST …"
# Where the dump breaks off, so does the restoring, which is one transaction: all or nothing.
here pg_dump --format=custom --no-owner --no-privileges |
    pg_restore --dbname="$there" --clean --if-exists --no-owner --no-privileges --single-transaction --exit-on-error

here rows --command="SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1" >/tmp/tables
while read -r table; do
    # A table has grown since the dump, or what came is not all: either way one runs this again.
    mine=$(here rows --command="SELECT count(*) FROM \"$table\"" </dev/null)
    theirs=$(rows "$there" --command="SELECT count(*) FROM \"$table\"" </dev/null)
    if [ "$mine" != "$theirs" ]; then
        echo "migrate-database: $table has $mine rows here and $theirs there. Stop what writes here, and run this again." >&2
        exit 1
    fi
    [ "$mine" = 0 ] || echo "$table: $mine rows at both ends"
done </tmp/tables
