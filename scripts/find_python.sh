#!/bin/sh
# Prints the path of a CPython >= 3.12: $PYTHON if it is set, else the first of PATH and ~/.pyenv that fits.
set -u
fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not ((3, 12) <= sys.version_info < (3, 14)))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" && { command -v "$PYTHON"; exit 0; }
    echo "PYTHON=$PYTHON is not a CPython 3.12 or 3.13 with venv; set it to one, or unset it to search" >&2
    exit 1
fi
tried=""
for candidate in python3.12 python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python3 python3 python; do
    found=$(command -v "$candidate" 2>/dev/null) || continue
    tried="$tried $found"
    fits "$found" && { echo "$found"; exit 0; }
done
echo "Forebay needs CPython 3.12 or 3.13 (with venv); none of these is one:${tried:- nothing found}." >&2
echo "Install one (apt install python3.12-venv, pyenv install 3.12, conda create -n forebay python=3.12)" >&2
echo "and run:  PYTHON=/path/to/python3.12 make test" >&2
exit 1
