#!/usr/bin/env bash
# Builds the image, starts it as production does (read-only root, no capabilities, no root), asks it a question and stops
# it; prints what it answered, how large it is and how long it took:  make image
#   deploy/try_image.sh [FLAG OF BUILD]...      with DOCKER=podman, IMAGE=heed:try, PORT=18000 where these are not right
set -euo pipefail
cd "$(dirname "$0")/.."
docker=${DOCKER:-docker} image=${IMAGE:-heed:latest} port=${PORT:-8000}
seconds() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(seconds)" 'BEGIN { printf "%.1f", b - a }'; }

if [ "$("$docker" --version | awk '{ print $1 }')" = podman ]; then set -- --format docker "$@"; fi # or HEALTHCHECK is lost
start=$(seconds)
"$docker" build "$@" -t "$image" .
echo "==> built in $(since "$start") s: $image"

start=$(seconds)
running=heed-try-$$
trap '"$docker" rm -f "$running" >/dev/null 2>&1' EXIT
"$docker" run -d --name "$running" --read-only --tmpfs /tmp --cap-drop=ALL --security-opt=no-new-privileges \
    -p "127.0.0.1:$port:8000" "$image" >/dev/null
until wget -qO- "http://127.0.0.1:$port/health/ready" >/dev/null 2>&1; do
    [ "$("$docker" inspect -f '{{.State.Running}}' "$running")" = true ] || { "$docker" logs "$running" >&2; exit 1; }
    awk -v s="$(since "$start")" 'BEGIN { exit s > 120 }' || { echo "not ready after 120 s" >&2; exit 1; }
    sleep 0.2
done
echo "==> ready after $(since "$start") s"
wget -qO- --header 'Content-Type: application/json' --post-data '{"texts": ["a gorgeous, witty, seductive movie"]}' \
    "http://127.0.0.1:$port/v1/classify"
echo
start=$(seconds)
"$docker" stop -t 40 "$running" >/dev/null
echo "==> stopped after $(since "$start") s, exit $("$docker" inspect -f '{{.State.ExitCode}}' "$running")"
echo "==> bytes of the image: $("$docker" image inspect -f '{{.Size}}' "$image")"
