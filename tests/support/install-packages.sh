#!/bin/sh
# Installs the Debian packages named as arguments that are missing, when this user may: root, or sudo without a
# password. Otherwise says what is missing and goes on, because whoever needs a package says so again, with the remedy.
# No service is started by it: the packages are wanted for their programs, and port 25 of this machine is not ours.
set -eu

command -v dpkg-query >/dev/null || {
    echo "this is not Debian; wanted, if they are not here: $*"
    exit 0
}

missing=
for package in "$@"; do
    # shellcheck disable=SC2016  # the braces are dpkg's, not the shell's
    [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root='sudo -n'
else
    echo "missing, and this user may not install:$missing (as root: apt-get install$missing)"
    exit 0
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    # 101 is "not allowed" in the words of invoke-rc.d(8)
    printf '#!/bin/sh\nexit 101\n' | $as_root sh -c "cat >$policy && chmod 755 $policy"
fi

echo "installing from Debian:$missing"
log=$(mktemp)
# --no-remove: a machine that has another mail server keeps it
install() {
    # shellcheck disable=SC2086  # the lists of words are meant
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-remove --no-install-recommends install $missing >"$log" 2>&1
}
# the lists of a fresh image are empty, and those of an old one name versions that are gone
if ! install; then
    $as_root apt-get -q update >"$log" 2>&1 || true
    install || {
        tail -n 5 "$log" >&2
        echo "could not install:$missing" >&2
    }
fi
rm -f "$log"
