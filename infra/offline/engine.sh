#!/usr/bin/env bash
# A Docker engine with Compose v2 and BuildKit, from Debian or Ubuntu packages alone: `make engine`.
# Installs only what is missing and starts the engine where none answers. Needs root for both.
set -euo pipefail
trap 'echo "make engine: failed at line $LINENO: $BASH_COMMAND" >&2; exit 1' ERR

COMPOSE_AT_LEAST=2.24 # the first that knows all that Ratchet's compose files use
PLUGINS=/usr/local/lib/docker/cli-plugins
LOG=/var/log/dockerd.log

refuse() { # bad input: what is wrong and what to do
    echo "make engine: $*" >&2
    exit 2
}

has_engine() { command -v dockerd >/dev/null || docker info >/dev/null 2>&1; }
has_plugin() { docker "$1" version >/dev/null 2>&1; }
new_enough() { # does Compose have at least the wanted version?
    local version
    version=$(docker compose version --short 2>/dev/null) || return 1
    printf '%s\n%s\n' "$COMPOSE_AT_LEAST" "${version#v}" | sort --version-sort --check=quiet
}
answers() { docker info >/dev/null 2>&1; }
candidate() { # the version that apt would install, empty where it knows none
    apt-cache policy "$1" 2>/dev/null | awk '/Candidate:/ && $2 != "(none)" { print $2 }'
}

# Debian 12 has no Compose v2 and no buildx. Those of Debian 13 are single programs that need only libc: they are
# taken out of their packages and laid where the Docker client looks for plugins.
plugin_from_next_debian() { # package, plugin
    local folder mirror
    folder=$(mktemp -d)
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Label: Debian' | sed -n 1p)
    [ -n "$mirror" ] || refuse "apt knows no Debian mirror to take $1 from. Install $1 yourself, then run this again."
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$folder/sources.list"
    mkdir -p "$folder/lists/partial" "$PLUGINS"
    local options=(-o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$folder/lists" -o APT::Sandbox::User=root -q=2)
    apt-get "${options[@]}" update
    (cd "$folder" && apt-get "${options[@]}" download "$1" && dpkg-deb --extract "$1"_*.deb unpacked)
    install -m 755 "$(find "$folder/unpacked" -type f -path "*/cli-plugins/docker-$2")" "$PLUGINS/docker-$2"
    rm -rf "$folder"
}

install_plugin() { # plugin, and the packages that may carry it, best first
    local plugin=$1 package
    shift
    for package in "$@"; do
        case $(candidate "$package") in
            "" | 1.*) ;; # unknown here, or the old Compose in Python
            *)
                apt-get install -y -q=2 --no-install-recommends "$package" >/dev/null
                return
                ;;
        esac
    done
    plugin_from_next_debian "docker-$plugin" "$plugin"
}

missing=()
has_engine || missing+=("the Docker engine (package docker.io)")
new_enough || missing+=("Compose $COMPOSE_AT_LEAST or newer")
has_plugin buildx || missing+=("BuildKit's client, buildx")

if [ ${#missing[@]} -gt 0 ]; then
    echo "Not on this machine:"
    printf '  - %s\n' "${missing[@]}"
    command -v apt-get >/dev/null ||
        refuse "this machine has no apt-get. Expected Debian or Ubuntu; install the above with your own packages."
    [ "$(id -u)" = 0 ] || refuse "installing needs root. Run: sudo make engine"
    echo "Installing from the packages of $(. /etc/os-release && echo "$PRETTY_NAME") …"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q=2
    has_engine || apt-get install -y -q=2 --no-install-recommends docker.io iptables >/dev/null
    command -v docker >/dev/null || apt-get install -y -q=2 --no-install-recommends docker-cli >/dev/null # Debian 13
    new_enough || install_plugin compose docker-compose-v2 docker-compose
    has_plugin buildx || install_plugin buildx docker-buildx
    new_enough || refuse "the Compose found is $(docker compose version --short), expected $COMPOSE_AT_LEAST or newer."
fi

if ! answers; then
    [ "$(id -u)" = 0 ] || refuse "no engine answers you at ${DOCKER_HOST:-the default socket}. Either none runs: sudo make" \
        "engine. Or you may not use it: join the group that may (sudo usermod -aG docker $(id -un)) and log in anew."
    if [ -d /run/systemd/system ]; then
        echo "Starting the engine: systemctl start docker"
        systemctl start docker
    else
        echo "Starting the engine: dockerd (its log: $LOG)"
        # Left by an engine that was killed. The numbers in them may by now be those of other processes, which
        # dockerd would take for itself and for its containerd.
        runs() { grep -qsx "$1" /proc/[0-9]*/comm; }
        runs dockerd || rm -f /run/docker.pid
        runs containerd || rm -f /run/docker/containerd/containerd.pid
        setsid nohup dockerd >"$LOG" 2>&1 </dev/null &
        server=$!
        for _ in $(seq 120); do
            answers && break
            kill -0 "$server" 2>/dev/null || break
            sleep 0.5 # the pace of asking
        done
    fi
    answers || {
        echo "make engine: the engine did not start. The end of its log:" >&2
        if [ -d /run/systemd/system ]; then journalctl --unit docker --lines 15 >&2; else tail -n 15 "$LOG" >&2; fi
        exit 1
    }
fi
echo "Docker engine $(docker version --format '{{.Server.Version}}'), Compose $(docker compose version --short)," \
    "buildx $(docker buildx version | awk '{ print $2 }')"
