#!/usr/bin/env bash
# Installs what building and testing need, on Debian 12 or 13 and Ubuntu 24.04. Does nothing when all
# of it is there.
#
#   scripts/setup.sh             for building and serving
#   scripts/setup.sh --tests     for the tests too
set -euo pipefail

readonly BUILD_PACKAGES=(
  build-essential cmake ninja-build pkg-config ccache mold git
  libabsl-dev libspdlog-dev nlohmann-json3-dev
  libprotobuf-dev protobuf-compiler libgrpc++-dev protobuf-compiler-grpc
  prometheus-cpp-dev libboost-dev libssl-dev libpcre2-dev libicu-dev
  python3 python3-pip curl ca-certificates
)
readonly TEST_PACKAGES=(
  libgtest-dev libgmock-dev python3-venv python3-yaml
  prometheus yamllint
)
# Not in every release; the tests that need it say so and are skipped.
readonly OPTIONAL_TEST_PACKAGES=(kubernetes-client)

die() {
  echo "setup.sh: $*" >&2
  exit 1
}

wanted=("${BUILD_PACKAGES[@]}")
optional=()
case "${1:-}" in
  "") ;;
  --tests)
    wanted+=("${TEST_PACKAGES[@]}")
    command -v kubectl > /dev/null || optional+=("${OPTIONAL_TEST_PACKAGES[@]}")
    ;;
  *) die "unknown argument '$1'; allowed is --tests" ;;
esac

[[ -r /etc/os-release ]] || die "this is not a Linux distribution that says what it is (no /etc/os-release)"
# shellcheck source=/dev/null
. /etc/os-release
case "${ID}:${VERSION_ID:-}" in
  debian:12 | debian:13 | ubuntu:24.04) ;;
  *)
    command -v apt-get > /dev/null ||
      die "${PRETTY_NAME:-this system} has no apt-get; install the packages named in this script by hand"
    echo "setup.sh: ${PRETTY_NAME:-this system} is not one of Debian 12, Debian 13, Ubuntu 24.04;" \
      "trying its packages anyway" >&2
    ;;
esac

is_installed() {
  [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2> /dev/null || true)" == installed ]]
}

missing=()
for package in "${wanted[@]}" "${optional[@]}"; do
  is_installed "$package" || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ "$(id -u)" -ne 0 ]]; then
  command -v sudo > /dev/null ||
    die "needs root to install: ${missing[*]}; run it as root, or install sudo"
  as_root=(sudo)
fi

# The log says more than a failure's last line does; addresses of mirrors are nobody's business.
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
apt_get() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" > "$log" 2>&1 || {
    sed -E 's#[a-z]+://[^ ]+#(mirror)#g' "$log" | tail -n 20 >&2
    die "apt-get $1 failed; see above"
  }
}

apt_get update
missing=()
for package in "${wanted[@]}"; do
  is_installed "$package" || missing+=("$package")
done
for package in "${optional[@]}"; do
  if [[ -n "$(apt-cache --quiet=0 madison "$package" 2> /dev/null)" ]]; then
    is_installed "$package" || missing+=("$package")
  else
    echo "setup.sh: this release has no package $package; the tests that need it will be skipped"
  fi
done
[[ ${#missing[@]} -eq 0 ]] && exit 0
echo "setup.sh: installing ${missing[*]}"
# The services that some test packages bring are not wanted, only their programs.
apt_get install --no-install-recommends --yes "${missing[@]}"
