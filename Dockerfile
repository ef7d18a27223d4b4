# The runtime in a container: no torch, no network, no root.
#   docker build -t leuda .                                         CPU
#   docker build -t leuda-cuda --build-arg EXTRAS=dicom,gpu .       CUDA: its libraries come as wheels
#   docker run --rm --network=none -v "$PWD/in:/in:ro" -v "$PWD/out:/out" leuda infer /in -o /out
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY leuda_deploy leuda_deploy
COPY leuda_train leuda_train
# the phantom model, which leuda_deploy links to
COPY exports/phantom-heart exports/phantom-heart
ARG EXTRAS=dicom,openvino
RUN python -m venv /opt/leuda \
 && /opt/leuda/bin/python -m pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim
COPY --from=build /opt/leuda /opt/leuda
# any user may be given with --user, one without a home folder, too
ENV PATH=/opt/leuda/bin:$PATH HOME=/tmp LEUDA_CACHE=/tmp/leuda
RUN useradd --no-create-home --uid 10001 leuda
USER 10001
WORKDIR /tmp
ENTRYPOINT ["leuda"]
CMD ["--help"]
