# Shared by the scripts of this folder; sourced, never run. Sets ROOT (the checkout) and VENV.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
# An ordinary user's PATH may lack the folders that hold ip and tc.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# All that is said goes to stderr, so that a script's output can be piped.
say() { printf '== %s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
is_root() { [ "$(id -u)" = 0 ]; }
need_root() {
    is_root || fail "$1 needs root, as it makes network namespaces; run: sudo scripts/$1"
}

# Under sudo, what root has made in the checkout goes to the checkout's owner.
give_back() {
    if is_root && [ "$(stat -c %u "$ROOT")" != 0 ]; then
        find "$ROOT" -xdev -uid 0 -exec chown -h --reference="$ROOT" {} + 2>/dev/null || true
    fi
}
