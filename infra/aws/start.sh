#!/usr/bin/env bash
# Brings the platform on this host to what its checkout and .env say: infra/aws/start.sh, as root. Run it again after a
# new version or a new secret; where nothing has changed, it changes nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export HOME="${HOME:-/root}" # Systems Manager sets none, and Docker keeps a registry's login there
exec 9> /run/lock/ratchet-start
flock --nonblock 9 || { echo "infra/aws/start.sh is running already. Wait for it." >&2; exit 1; }

# .env is read as text, and the environment does not count: the same settings, whoever starts this.
unset COMPOSE_FILE COMPOSE_PROJECT_NAME COMPOSE_PROFILES
for name in RATCHET_NAME RATCHET_REGISTRY RATCHET_TAG AWS_REGION; do
  value=$(sed -n "s/^$name=//p" .env | tail -n 1)
  if [ -z "$value" ]; then
    echo "$name is missing in $PWD/.env. Expected the lines of: terraform output -raw env" >&2
    exit 2
  fi
  export "$name=$value"
done
export AWS_DEFAULT_REGION="$AWS_REGION" # the name that boto3 knows
step() { echo "$(date -Is) $*"; }

step "[1/5] Secrets, from Secrets Manager"
mkdir -p -m 0700 .secrets
docker run --rm --network host --user 0:0 --env AWS_DEFAULT_REGION --volume "$PWD/.secrets:/secrets" "${RATCHET_REGISTRY}ratchet-tracking:${RATCHET_TAG}" infra.pull_secrets --prefix "$RATCHET_NAME/" --folder /secrets

step "[2/5] Settings"
make --silent env-prod

step "[3/5] Images" # not before: Compose reads nothing while a setting is missing
docker compose --profile jobs pull --quiet

step "[4/5] The database's user"
docker compose run --rm --no-TTY database-role

step "[5/5] Containers, and the one-shots before them: tables, service accounts"
docker compose up --detach --wait --remove-orphans

step "Ratchet is up"
