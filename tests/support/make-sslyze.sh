#!/bin/sh
# Makes the environment of sslyze inside the one named as the argument, from the pins in sslyze.txt beside this file.
# Not to get it is no error here: the test that needs it says so, with the remedy.
set -eu

venv=$1
pins=$(dirname "$0")/sslyze.txt
made=$venv/sslyze

make_it() {
    pip="$made/bin/python -m pip --disable-pip-version-check --quiet install"
    "$venv/bin/python" -m venv --clear "$made" || return 1
    # as the program's own environment: what has to be built is built by the pinned setuptools
    $pip --constraint constraints.txt pip setuptools || return 1
    $pip --no-deps --no-build-isolation --requirement "$pins" || return 1
    cp "$pins" "$made/made-from.txt"
}

cmp -s "$pins" "$made/made-from.txt" && exit 0
echo "make: installing sslyze into $made"
make_it || echo "could not install sslyze; the test that scans TLS with it cannot run" >&2
