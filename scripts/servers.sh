#!/bin/sh
# Make sure that redis-server, rabbitmq-server and PostgreSQL are installed: install them where that is allowed, else say how.
set -eu
missing=""
[ -x "$(command -v redis-server || true)" ] || missing="$missing redis-server"
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || [ -x "$(command -v rabbitmq-server || true)" ] || missing="$missing rabbitmq-server"
[ -n "$(command -v postgres || ls /usr/lib/postgresql/*/bin/postgres 2>/dev/null || true)" ] || missing="$missing postgresql"
[ -n "$missing" ] || exit 0

how="apt-get install$missing"
command -v apt-get >/dev/null 2>&1 || { echo "missing:$missing. Install them with your package manager, then run make again." >&2; exit 1; }
if [ "$(id -u)" = 0 ]; then as=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as="sudo -n"
else echo "missing:$missing. Run: sudo $how" >&2; exit 1
fi

# The packages would start system-wide servers; the tests start their own.
policy=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as tee "$policy" >/dev/null && $as chmod +x "$policy" && made=yes
fi
trap '[ -z "$made" ] || $as rm -f "$policy"' EXIT
echo "installing:$missing"
$as env DEBIAN_FRONTEND=noninteractive apt-get -qq update
# shellcheck disable=SC2086
$as env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
