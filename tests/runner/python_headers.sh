#!/bin/sh
# usage: python_headers.sh PYTHON DIRECTORY
# Debian's python3 comes without Python.h, which every extension needs. Where it is missing, takes
# the headers of exactly this Python out of Debian's package into DIRECTORY (no root needed unless
# apt's package lists are missing); the build finds them through CPATH.
set -eu
python=$1 directory=$2
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$include/Python.h" ] && exit 0

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
echo "== no Python.h in $include: taking it from Debian's libpython$version-dev"
mkdir -p "$directory"
cd "$directory"
if ! apt-get -qq download "libpython$version-dev" 2>/dev/null; then
  apt-get -qq update && apt-get -qq download "libpython$version-dev"
fi || {
  echo "ringreduce: Python.h is missing; install Python's headers (Debian: apt-get install python3-dev)" >&2
  exit 1
}
dpkg-deb -x ./*.deb .
rm ./*.deb
