#!/usr/bin/env bash
# old-sqlite.sh FOLDER: builds SQLite 3.7.17, the oldest that the library is meant for, as
# FOLDER/libsqlite3.so.0 and prints that path. A Python whose _sqlite3 is linked with the shared
# library, up to 3.9 (later ones need more than 3.7.17 has), uses it so:
#
#     LD_LIBRARY_PATH=FOLDER python3.6 -c 'import sqlite3; print(sqlite3.sqlite_version)'
#
# The sources come with sqlite3 2.1.19 of npm, which is got as npm gets packages here, and are
# checked against the sum of the release. Needs npm and gcc; nothing is installed.
set -euo pipefail
PACKAGE=sqlite3@2.1.19 RELEASE=sqlite-autoconf-3071700
SUM=8ff46d0baa9e64c0815544e829e985f1161c096aa6344c8f430791dbeadc2baf
FOLDER=$(mkdir -p "$1" && cd "$1" && pwd)
BUILD=$(mktemp -d)
trap 'rm -rf "$BUILD"' EXIT

cd "$BUILD"
npm pack --silent "$PACKAGE" >&2
tar -xzf sqlite3-*.tgz "package/deps/$RELEASE.tar.gz"
echo "$SUM  package/deps/$RELEASE.tar.gz" | sha256sum --check --quiet >&2
tar -xzf "package/deps/$RELEASE.tar.gz"
# Code of that age is not free of what compilers warn of today.
"${CC:-gcc}" -O1 -w -shared -fPIC -DSQLITE_THREADSAFE=1 -Wl,-soname,libsqlite3.so.0 \
    -o "$FOLDER/libsqlite3.so.0" "$RELEASE/sqlite3.c" -ldl -lpthread
printf '%s\n' "$FOLDER/libsqlite3.so.0"
