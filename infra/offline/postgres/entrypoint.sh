#!/bin/bash
# Postgres from Debian's package, started as the official image starts it: the same variables, the same folder.
set -euo pipefail

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
        POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    fi
    if [ -z "${POSTGRES_PASSWORD:-}" ]; then
        echo "POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD has to be set for a new database." >&2
        exit 2
    fi
    # Made aside and moved, PG_VERSION last: what a killed container leaves is no database and is made again.
    find "$PGDATA" -mindepth 1 -delete
    new=$PGDATA/.new
    initdb --pgdata="$new" --username="${POSTGRES_USER:-postgres}" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") \
        --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256
    echo "host all all all scram-sha-256" >>"$new/pg_hba.conf"
    database=${POSTGRES_DB:-${POSTGRES_USER:-postgres}}
    if [ "$database" != postgres ]; then
        echo "CREATE DATABASE \"$database\";" | postgres --single -j -D "$new" postgres >/dev/null
    fi
    chmod 700 "$PGDATA"
    find "$new" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv {} "$PGDATA" \;
    mv "$new/PG_VERSION" "$PGDATA"
    rmdir "$new"
fi
unset POSTGRES_PASSWORD
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql "${@:2}"
