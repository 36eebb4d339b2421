# SafeDraft's own server on processors (docs/server.md).
# The project has built it with buildah, on Debian 12 with Python 3.11 in place of the base below, and
# served the default pair from it.
FROM python:3.12-slim

WORKDIR /safedraft
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY experts experts

# Torch's own index of builds for processors (--build-arg TORCH_INDEX=ADDRESS) makes the image some
# gigabytes smaller.
ARG TORCH_INDEX
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch \
 && pip install --no-cache-dir --constraint constraints.txt '.[cpu,server]'

ENV SAFEDRAFT_CACHE=/cache/safedraft
EXPOSE 8000
ENTRYPOINT ["safedraft", "serve", "--host", "0.0.0.0", "--port", "8000"]
