#!/bin/bash
# A tracker on a fresh Debian 12 or 13: PostgreSQL, systemd, Caddy with its own certificates, daily
# backups. Safe to run again: it upgrades, and keeps the database, the secret and the Caddyfile.
#
#   sudo ./server.sh HOST CRAWL [SOURCE]
#
# HOST is the name under which people reach it (or :80 for a network without names), CRAWL what
# `cah tracker add --crawl` takes, SOURCE what pip installs cahlib from [the checkout around it].
set -euo pipefail
host=${1:?usage: server.sh HOST CRAWL [SOURCE]}
crawl=${2:?usage: server.sh HOST CRAWL [SOURCE]}
source=${3:-$(cd "$(dirname "$0")/../../.." && pwd)}

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y postgresql caddy python3-venv

id -u cah-tracker >/dev/null 2>&1 ||
  useradd --system --create-home --home-dir /var/lib/cah-tracker cah-tracker
install -d -o cah-tracker -g cah-tracker -m 700 /var/lib/cah-tracker /var/backups/cah-tracker
psql() { runuser -u postgres -- psql -qtA "$@"; }
[ "$(psql -c "SELECT 1 FROM pg_roles WHERE rolname = 'cah-tracker'")" ] ||
  psql -c 'CREATE ROLE "cah-tracker" LOGIN'
[ "$(psql -c "SELECT 1 FROM pg_database WHERE datname = 'cah-tracker'")" ] ||
  psql -c 'CREATE DATABASE "cah-tracker" OWNER "cah-tracker"'

[ -x /opt/cah-tracker/bin/python ] || python3 -m venv /opt/cah-tracker
/opt/cah-tracker/bin/pip install -q --upgrade "cahlib[tracker] @ file://$source"

if [ ! -e /etc/cah-tracker.env ]; then
  (umask 077 && cat >/etc/cah-tracker.env <<END
CAH_TRACKER_DATABASE=postgresql+psycopg:///cah-tracker?host=/run/postgresql
CAH_TRACKER_SECRET=$(head -c 32 /dev/urandom | base64 | tr -d '/+=')
END
  )
fi

cat >/etc/systemd/system/cah-tracker.service <<END
[Unit]
Description=cahlib tracker
After=network.target postgresql.service
Wants=postgresql.service

[Service]
User=cah-tracker
EnvironmentFile=/etc/cah-tracker.env
ExecStart=/opt/cah-tracker/bin/cah tracker serve --processes $(nproc) --behind-proxy 127.0.0.1
Restart=always
RestartSec=2
LimitNOFILE=65536
CapabilityBoundingSet=
DevicePolicy=closed
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
UMask=0077
ReadWritePaths=/var/lib/cah-tracker
WorkingDirectory=/var/lib/cah-tracker

[Install]
WantedBy=multi-user.target
END

cat >/etc/systemd/system/cah-tracker-backup.service <<'END'
[Unit]
Description=Backup of the cahlib tracker; the last 14 are kept

[Service]
Type=oneshot
User=cah-tracker
Nice=10
EnvironmentFile=/etc/cah-tracker.env
ExecStart=/bin/sh -ec 'cd /var/backups/cah-tracker; \
  /opt/cah-tracker/bin/cah tracker backup new; mv new "$$(date +%%F-%%H%%M)"; \
  ls | grep "^[0-9]" | head -n -14 | xargs -r rm'
END

cat >/etc/systemd/system/cah-tracker-backup.timer <<'END'
[Unit]
Description=Daily backup of the cahlib tracker

[Timer]
OnCalendar=daily
RandomizedDelaySec=30m
Persistent=yes

[Install]
WantedBy=timers.target
END

if ! grep -q 'reverse_proxy 127.0.0.1:8000' /etc/caddy/Caddyfile; then
  printf '%s {\n\treverse_proxy 127.0.0.1:8000\n}\n' "$host" >/etc/caddy/Caddyfile
fi

(set -a; . /etc/cah-tracker.env
 runuser -u cah-tracker -- /opt/cah-tracker/bin/cah tracker add --crawl "$crawl")
systemctl daemon-reload
systemctl enable -q cah-tracker-backup.timer cah-tracker.service
systemctl restart cah-tracker.service caddy.service
systemctl start cah-tracker-backup.timer
for _ in $(seq 60); do
  python3 -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:8000/readyz")' 2>/dev/null && break
  sleep 1
done
echo "The tracker is at $host; the administrator's secret is in /etc/cah-tracker.env."
