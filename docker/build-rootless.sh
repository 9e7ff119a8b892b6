#!/bin/sh
# Builds an image without a container engine, with buildah in a chroot: on CI machines and in
# sandboxes where no daemon runs. Debian: apt-get install buildah runc; root, or a user with subids.
#
#   sh docker/build-rootless.sh cpu            # target: cpu, cuda or mlflow
#   BASE_ROOTFS=/path/to/rootfs sh docker/build-rootless.sh cpu
#
# BASE_ROOTFS is for machines that reach no registry of images: a folder with Debian bookworm, as
#   debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm ROOTFS
# makes it; it stands in for the base image, with Debian's Python 3.11. More arguments go to buildah.
set -eu
cd "$(dirname "$0")/.."
target=${1:?name a target: cpu, cuda or mlflow}
shift
export STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}" BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"
base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' docker/Dockerfile)
pull=--pull

if [ -n "${BASE_ROOTFS:-}" ]; then
  [ -e "$BASE_ROOTFS/usr/bin/python" ] || ln -s python3 "$BASE_ROOTFS/usr/bin/python"
  printf 'FROM scratch\nADD . /\nCMD ["python3"]\n' |
    buildah bud --format docker -f /dev/stdin -t "$base" "$BASE_ROOTFS"
  pull=--pull-never
fi
# Docker's format keeps SHELL and HEALTHCHECK, which OCI's has no place for.
exec buildah bud --format docker --layers=false "$pull" -f docker/Dockerfile --target "$target" \
  -t "ple:0.1.0-$target" --build-arg "REVISION=$(git rev-parse HEAD)" "$@" .
