#!/bin/sh
# usage: python_headers.sh VERSION DIRECTORY
# Takes the headers of Python VERSION ("3.11") out of Debian's package into DIRECTORY/usr/include, for the build to
# find them there. Nothing is installed and no root is needed: where the machine's own package lists don't have
# them, lists of the Debian release that does are fetched into DIRECTORY.
set -eu
version=$1 directory=$2
package=libpython$version-dev
[ -e "$directory/usr/include/python$version/Python.h" ] && exit 0

echo "== taking Python.h from Debian's $package"
mkdir -p "$directory/lists/partial"
cd "$directory"
case $version in 3.11) release=bookworm ;; *) release=trixie ;; esac
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $release main" >sources.list
cat >apt.conf <<END
Dir::Etc::sourcelist "$PWD/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$PWD/lists";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
END
apt-get -qq download "$package" 2>/dev/null ||
  { apt-get -qq -c apt.conf update && apt-get -qq -c apt.conf download "$package"; } || {
  echo "ringreduce: there is no $package; install Python's headers (Debian: apt-get install python3-dev)" >&2
  exit 1
}
dpkg-deb -x ./*.deb .
rm -r ./*.deb lists sources.list apt.conf
