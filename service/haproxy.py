"""What Ray starts in place of HAProxy: mend the configuration that Ray rendered, then become HAProxy.

Run as a script, by path, without site-packages: HAPROXY_BINARY HOST FOLDER [arguments of HAProxy], where
FOLDER holds the answers that no replica gives, and a file STOPPING once nothing is to start any more.
Ray reloads HAProxy through the same command, so the mends stay. What they mend, in Ray 2.60's template:
  - ports 9101 and 8404 (metrics, statistics) listen on all interfaces and cannot be turned off
  - a log line per request, with its path
  - idle keep-alive connections hold up a soft stop for 90 s; they are not closed at once, as the process before
    a reload would then close them under requests that are being sent
  - with no replica up, requests wait in Ray's Python proxy, or get 404, instead of 503 at once
  - where a replica ends under a request, the answer is HTML
  - no limit on how slowly a client may send its headers
  - headers of a client that Ray obeys or stumbles over
  - what a replica did not answer, because it died or cannot serve, is not asked of another
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
STOPPING = "stopping"
INSTEAD = (502, 503, 504)  # statuses of HAProxy's own that are answered by a file, such as 503.http
RETRIES = "retry-on conn-failure empty-response 503\n    retries 1"  # what kills a replica does not kill many
# Ray takes the first two from any client: a deadline with an answer of its own shape, and a leaver that
# is not noticed. A request id that is not short and printable would be a 500 there. A request is asked again only if
# HAProxy had all of it before it sent any, in 16 kB; not what a replica says of itself, nor of the store of labels.
FRONT = """    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request del-header x-request-id unless { req.hdr(x-request-id) -m reg ^[!-~]{1,128}$ }
    option http-buffer-request
    http-request disable-l7-retry if { path_beg /health/ } || { path /v1/feedback }
"""


def mend(text: str, host: str, folder: str) -> str:
    """The configuration without the above, listening on `host`."""
    text = re.sub(r"(?ms)^frontend prometheus$.*?(?=^\S|\Z)", "", text)
    text = re.sub(r"(?ms)^listen stats$.*?(?=^\S|\Z)", "", text)
    text = re.sub(r"(?m)^ +(log |option httplog|option log-health|errorfile 50[234] ).*\n", "", text)
    text = re.sub(r"(?m)^( +timeout http-keep-alive ).*$", r"\g<1>5s", text)
    text = re.sub(r"(?m)^ +server .* backup$\n", "", text)
    text = re.sub(r"(?m)^( +bind )127\.0\.0\.1:", rf"\g<1>{host}:", text)
    text = re.sub(r"(?m)^( +http-request )return status 404 .*$", r"\1deny deny_status 503", text)
    text = re.sub(r"(?m)^(frontend http_frontend\n +bind .*\n)", lambda front: front[1] + FRONT, text)
    text = re.sub(r"(?m)^( +)retry-on .*$", rf"\g<1>{RETRIES}", text)
    ours = [
        "mode http",
        "timeout http-request 10s",
        "timeout server 3600s",
        "timeout queue 5s",
        *(f"errorfile {status} {folder}/{status}.http" for status in INSTEAD),
    ]
    return text.replace("    mode http\n", "".join(f"    {line}\n" for line in ours), 1)


def main() -> None:
    """Mend the file after -f and replace this process by HAProxy."""
    binary, host, folder, *arguments = sys.argv[1:]
    if Path(folder, STOPPING).exists():
        sys.exit("the service is stopping: HAProxy is not started again")
    config = Path(arguments[arguments.index("-f") + 1])
    config.write_text(mend(config.read_text(), host, folder))
    if "HEED_RUN_FOLDER" in os.environ:  # under `heed serve`, where nothing may be left; else HAProxy outlives Ray
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            sys.exit("the process that started HAProxy is gone")
    os.execv(binary, [binary, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
