# testbed in an image, provisioned by the same script as every other machine. It makes network
# namespaces, so run it privileged:
#   docker build -t testbed . && docker run --rm --privileged testbed doctor
#   docker run --rm --privileged --entrypoint scripts/demo testbed
FROM debian:12-slim
COPY . /opt/testbed
WORKDIR /opt/testbed
RUN scripts/install && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["/opt/testbed/.venv/bin/testbed"]
