#!/usr/bin/env bash
# newer-python.sh FOLDER: puts a Python that this Debian does not have into FOLDER, with the C
# library it needs, and prints the path of its interpreter. Packages come from the mirror that apt
# uses here, of a later release (SUITE, default forky; VERSION, default 3.14); nothing is installed.
# Needs root, as patchelf is installed where it is missing.
set -euo pipefail
SUITE=${SUITE:-forky} VERSION=${VERSION:-3.14}
FOLDER=$(mkdir -p "$1" && cd "$1" && pwd)
APT=$FOLDER/.apt
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

# mirror: prints the address from which apt gets its packages here.
mirror() {
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
        grep -v '^ *#' | grep -oE 'https?://[^ ]+' | grep -v security | head -n 1
}

# apt ARGUMENTS: apt-get with lists, a cache and a state of its own, in which nothing is installed.
apt() {
    apt-get -q -o Dir::Etc::sourcelist="$APT/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::Etc::preferencesparts=- -o Dir::State="$APT" -o Dir::State::status="$APT/status" \
        -o Dir::Cache="$APT/cache" -o APT::Install-Recommends=0 -o Debug::NoLocking=1 "$@" >&2
}

mkdir -p "$APT/lists/partial" "$APT/cache/archives/partial"
: >"$APT/status"
echo "deb [signed-by=$KEYS] $(mirror) $SUITE main" >"$APT/sources.list"
apt update
apt -y --download-only install "python$VERSION" "python$VERSION-venv" "libpython$VERSION-stdlib"
for package in "$APT"/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$FOLDER"
done
command -v patchelf >/dev/null || apt-get install -y -q --no-install-recommends patchelf >&2

# The interpreter is to use the C library that came with it.
LIBRARIES=$(echo "$FOLDER"/usr/lib/*-linux-gnu*)
LOADER=$(find "$FOLDER" -name 'ld-linux-*.so.*' | head -n 1)
patchelf --set-interpreter "$LOADER" --force-rpath --set-rpath "$LIBRARIES" \
    "$FOLDER/usr/bin/python$VERSION"
rm -rf "$APT"
printf '%s\n' "$FOLDER/usr/bin/python$VERSION"
