#!/bin/bash
# rclone's S3 server under MinIO's variables and arguments: `server FOLDER …`. There is no console.
set -euo pipefail

if [ "${1:-}" != server ] || [ -z "${2:-}" ]; then
    echo "Expected: server FOLDER [--console-address :PORT]. Found: $*" >&2
    exit 2
fi
if [ -n "${MINIO_ROOT_PASSWORD_FILE:-}" ]; then
    MINIO_ROOT_PASSWORD=$(cat "$MINIO_ROOT_PASSWORD_FILE")
fi
# In the environment and not among the arguments, which `ps` shows to everyone. Quoted, since rclone reads a list here.
export RCLONE_AUTH_KEY="\"${MINIO_ROOT_USER:?},${MINIO_ROOT_PASSWORD:?}\""
unset MINIO_ROOT_PASSWORD
exec rclone serve s3 --addr :9000 --config /dev/null "$2"
