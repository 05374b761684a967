# Serves the bundled model on port 8000 as a user without rights.
FROM python:3.11-slim AS build

# Empty: the default index, whose torch brings CUDA along. Name PyTorch's CPU index to leave it out.
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/diffusiongpt
ENV PATH=/opt/diffusiongpt/bin:/usr/local/bin:/usr/bin:/bin
WORKDIR /build

# torch first and by its exact version, so that no other package chooses a build for us.
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
    "torch$(sed -n 's/^torch==/==/p' constraints.txt)"

COPY pyproject.toml README.md LICENSE ./
COPY cli ./cli
COPY engine ./engine
COPY server ./server
COPY training ./training
RUN pip install ".[server]" -c constraints.txt

FROM python:3.11-slim

RUN useradd --system --uid 10001 --create-home diffusiongpt
COPY --from=build /opt/diffusiongpt /opt/diffusiongpt
ENV PATH=/opt/diffusiongpt/bin:/usr/local/bin:/usr/bin:/bin \
    HF_HOME=/home/diffusiongpt/huggingface \
    DIFFUSIONGPT_HOST=0.0.0.0 \
    DIFFUSIONGPT_PORT=8000
WORKDIR /home/diffusiongpt
USER diffusiongpt
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["diffusiongpt"]
CMD ["serve"]
