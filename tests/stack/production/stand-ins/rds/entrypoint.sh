#!/bin/bash
# The image's own entrypoint, with TLS: PostgreSQL wants its key to be its own.
set -euo pipefail
install -m 600 /certificates/rds.key /tmp/rds.key
exec "$(command -v docker-entrypoint.sh || command -v entrypoint.sh)" "$@" \
    -c ssl=on -c ssl_cert_file=/certificates/rds.crt -c ssl_key_file=/tmp/rds.key -c hba_file=/rds/pg_hba.conf
