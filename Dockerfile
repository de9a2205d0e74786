# One image for serving and training:  docker build -t heed .      (needs the network once, for packages)
#   CUDA build of PyTorch:             docker build --build-arg VARIANT=cuda -t heed:cuda .
# No package index is named here: pip asks its own configuration, and --build-arg PIP_EXTRA_INDEX_URL=...
# is where the +cpu builds of PyTorch come from, if that configuration does not have them.
FROM python:3.11-slim-bookworm AS build
ARG VARIANT=cpu
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv --without-pip /opt/heed
COPY pyproject.toml constraints.txt ./
# PyTorch first, by its exact build (=== tells 2.13.0 from 2.13.0+cpu): nothing after it may choose another.
RUN torch=$(sed -n 's/^torch==//p' constraints.txt) && \
    case "$VARIANT" in cpu) torch="$torch+cpu" ;; cuda) ;; *) echo "VARIANT is cpu or cuda, not: $VARIANT" >&2; exit 2 ;; esac && \
    if ! pip --python /opt/heed/bin/python install -c constraints.txt "torch===$torch"; then \
      echo "not found: --build-arg PIP_EXTRA_INDEX_URL=... names the index of PyTorch's wheels that has torch $torch" >&2; exit 1; \
    fi
# ray[default] is what KubeRay asks for (the agent that its probes call). It adds no package to ray[serve].
# otel: spans; postgres: the feedback_store of several nodes; s3: a registry in an object store.
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; extras = p["optional-dependencies"]; print(*p["dependencies"], *extras["otel"], *extras["postgres"], *extras["s3"], "ray[default]", sep="\n")' > requirements.txt && \
    pip --python /opt/heed/bin/python install -c constraints.txt -r requirements.txt
# What compilers, Java and the packages' own tests want, 0.3 GB; import torch looks for torch_shm_manager.
WORKDIR /opt/heed/lib/python3.11/site-packages
RUN rm -rf torch/test torch/include ray/jars && find torch/bin -type f ! -name torch_shm_manager -delete && \
    find matplotlib networkx numpy scipy sklearn sympy -type d -name tests -prune -exec rm -rf {} +
WORKDIR /src
COPY . .
# The variable holds for what builds the package, too; -c does not.
RUN PIP_CONSTRAINT=/src/constraints.txt pip --python /opt/heed/bin/python install --no-deps .
# What Ray starts as HAProxy in a cluster (service/haproxy.py), where Ray says on which address.
WORKDIR /opt/heed/ingress
RUN ../bin/python -c 'from pathlib import Path; from service.launch import write_haproxy_command; write_haproxy_command(Path.cwd(), "127.0.0.1")'

FROM python:3.11-slim-bookworm
# wget: KubeRay's probes run it, with grep and bash. tini: forwards signals from the first moment, reaps orphans.
# Their versions are those of the distribution's release, whose mirrors keep one of each.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends tini wget && rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --home-dir /tmp --no-create-home heed
COPY --from=build /opt/heed /opt/heed
# HOME is /tmp and USER is set, so that a read-only root and any other --user work too.
ENV PATH=/opt/heed/bin:$PATH HOME=/tmp USER=heed PYTHONUNBUFFERED=1 HEED_HOST=0.0.0.0
LABEL org.opencontainers.image.title="heed" \
      org.opencontainers.image.description="Train a text classifier and serve it" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=3); c.request('GET', '/health/ready'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--"]
CMD ["heed", "serve"]
