# vLLM's server on CUDA, every reply decoded with SSD (docs/vllm.md).
# This image was never built or run by the project: there was no Docker and no GPU.
FROM vllm/vllm-openai:v0.32.0

WORKDIR /safedraft
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY experts experts
COPY tools/vllm_hooks.py tools/vllm_hooks.py

# The packages of the image stay as they are; those that SafeDraft needs besides are added. The last
# command fails unless this vLLM's code is that of a version that SafeDraft knows.
RUN pip list --format freeze > /tmp/installed \
 && pip install --no-cache-dir --constraint /tmp/installed . \
 && python3 tools/vllm_hooks.py "$(python3 -c 'from importlib.util import find_spec as f; print(f("vllm").submodule_search_locations[0])')/.."

ENV SAFEDRAFT_CACHE=/cache/safedraft \
    VLLM_CACHE_ROOT=/cache/vllm
EXPOSE 8000
ENTRYPOINT ["safedraft", "serve", "--engine", "vllm", "--host", "0.0.0.0", "--port", "8000"]
