# The server's image.
#
#   docker build -t longstride:cpu .
#   docker build -t longstride:cuda --build-arg VARIANT=cuda .
#
# Builds with the same script and preset as README's quickstart. The CUDA runtime is linked statically
# and the driver comes from the host's container toolkit, so the run stage needs no CUDA packages.

ARG VARIANT=cpu

FROM debian:12 AS toolchain-cpu
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS toolchain-cuda

FROM toolchain-${VARIANT} AS build
ARG VARIANT
ARG COMMIT=unknown
WORKDIR /src
# Packages first: they change less often than the source.
COPY scripts/setup.sh scripts/setup.sh
RUN scripts/setup.sh
COPY . .
RUN cmake --preset release -DLONGSTRIDE_COMMIT=${COMMIT} \
      -DLONGSTRIDE_CUDA=$([ "${VARIANT}" = cuda ] && echo ON || echo OFF) \
      "-DLONGSTRIDE_CUDA_ARCHITECTURES=80-real;89-real;90a-real;100-real;120" \
 && cmake --build --preset release \
 && scripts/runtime_packages.sh build/release/server/longstride > /runtime-packages \
 && strip --strip-debug -o /longstride build/release/server/longstride

FROM debian:12-slim AS run-cpu
FROM ubuntu:24.04 AS run-cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM run-${VARIANT}
COPY --from=build /runtime-packages /tmp/runtime-packages
RUN apt-get update \
 && xargs --arg-file=/tmp/runtime-packages apt-get install --yes --no-install-recommends \
 && rm -rf /var/lib/apt/lists/* /tmp/runtime-packages
COPY --from=build /longstride /usr/local/bin/longstride
# A number, so that runAsNonRoot can be checked; nobody else's on the usual systems.
USER 65532:65532
# All addresses: the server refuses to start so without an API-key file (LONGSTRIDE_API_KEYS) or
# LONGSTRIDE_INSECURE=true. Nothing is written to the file system; a read-only root is fine.
ENV LONGSTRIDE_HOST=0.0.0.0 LONGSTRIDE_LOG_FORMAT=json
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
ENTRYPOINT ["longstride"]
# The model comes from LONGSTRIDE_MODEL, or as the argument: docker run … longstride:cpu serve MODEL
CMD ["serve"]
