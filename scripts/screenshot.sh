#!/usr/bin/env bash
# Full-page screenshots of an HTML file at desktop and phone width, with a headless Chromium.
#
#   scripts/screenshot.sh report.html [folder]     writes folder/NAME-1280.png and folder/NAME-400.png
#
# Debian's chromium is installed by apt when there is none (needs root); CHROMIUM names another browser to use.
# Text that the page writes to the console, refused loads included, goes to folder/NAME-WIDTH.log.
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
  echo "usage: $0 FILE.html [FOLDER]; FILE.html must exist" >&2
  exit 2
fi
page=$(realpath "$1")
folder=$(realpath -m "${2:-.}")
name=$(basename "${page%.html}")
mkdir -p "$folder"

find_browser() {
  for candidate in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    if [[ -n $candidate ]] && command -v "$candidate" > /dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

if ! browser=$(find_browser); then
  echo "installing chromium" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >&2
  browser=$(find_browser)
fi

profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

capture() { # width height picture log
  rm -f "$3"
  "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --enable-logging=stderr \
    --user-data-dir="$profile/$1" --window-size="$1,$2" --virtual-time-budget=10000 \
    --screenshot="$3" "file://$page" 2> "$4"
  [[ -s $3 ]] || { echo "no screenshot was written; see $4" >&2; exit 1; }
  echo "$3"
}

capture 1280 "${DESKTOP_HEIGHT:-5200}" "$folder/$name-1280.png" "$folder/$name-1280.log"
# Headless Chromium lays out no window narrower than 500 px, so the phone's width is that of a frame in a wider window.
frame=$profile/phone.html
printf '<!DOCTYPE html><body style="margin:0"><iframe src="file://%s" style="width:400px;height:%spx;border:0"></iframe>' \
  "$page" "${PHONE_HEIGHT:-7600}" > "$frame"
page=$frame
capture 500 "${PHONE_HEIGHT:-7600}" "$folder/$name-400.png" "$folder/$name-400.log"
