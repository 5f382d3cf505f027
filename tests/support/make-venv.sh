#!/bin/sh
# Makes or renews the virtual environment named as the argument: the pinned packages and this project, editable.
# Called by the Makefile with PYTHON set. A fresh Debian has python3 but not the part of it that makes
# virtual environments; that package is installed when this user may, and asked for otherwise.
set -eu

venv=$1
python=${PYTHON:-python3}
here=$(dirname "$0")

fail() {
    echo "make: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python is not there; install python3 (3.11 or newer), or name one: make PYTHON=/path/to/python3.12"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $version, and 3.11 or newer is needed; name another one: make PYTHON=/path/to/python3.12"

# An environment of this very version of Python is renewed in place; any other, or a broken one, is made anew.
in_venv=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
if [ "$in_venv" != "$version" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian keeps ensurepip in a package per Python version; `python3-venv` is the one of its own python3
        [ "$(command -v "$python")" = /usr/bin/python3 ] && package=python3-venv || package=python$version-venv
        echo "make: $python cannot make virtual environments yet"
        sh "$here/install-packages.sh" "$package" || true
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python cannot make virtual environments; as root: apt-get install $package"
    fi
    echo "make: a virtual environment with Python $version in $venv"
    "$python" -m venv --clear "$venv"
fi

echo "make: installing the pinned packages into $venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet --constraint constraints.txt pip setuptools
# without build isolation, so that the pinned setuptools builds the project and not whatever is newest today;
# it warns at length that an editable install is editable
PYTHONWARNINGS=ignore $pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
